"""The BraTS challenges: one folder per case; the end of each file's name gives its modality, or says segmentation.

Sources of the label values: Baid et al., arXiv:2107.02314 (2021); Adewole et al., arXiv:2305.19369 and Kazerooni
et al., arXiv:2305.17033 (2023); de Verdier et al., arXiv:2405.18368 (2024).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.layouts.common import Layout, LayoutFormat, default_subject, image_files, schema_for, stem
from medaug.layouts.rules import Rules


@dataclass(frozen=True)
class Naming:
    """The file names, <case><separator><suffix>.nii.gz, and labels of one generation of the challenge."""

    years: str
    separator: str
    modalities: Mapping[str, str]  # suffix -> modality, in the order of the manifest
    schema: Mapping[str, Any]

    def split(self, file: str) -> tuple[str, str] | None:
        """Return (case, suffix), or None for a file with another kind of name."""
        suffixes = "|".join([*self.modalities, "seg"])
        found = re.fullmatch(rf"(.+){self.separator}({suffixes})", stem(file))
        return (found[1], found[2]) if found else None


def _schema(names: Mapping[int, str], core: Sequence[int], oedema: int) -> dict[str, Any]:
    """Return class names by value and the three scored regions; the last value of `core` is the enhancing tumour."""
    return {
        "labels": {"0": "background", **{str(value): name for value, name in names.items()}},
        "regions": {
            "whole tumour": sorted([*core, oedema]),
            "tumour core": list(core),
            "enhancing tumour": [core[-1]],
        },
    }


_NEW_MODALITIES = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR"}
BRATS: Mapping[str, Naming] = {
    "brats2020": Naming(
        years="2018-2021",
        separator="_",
        modalities={"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"},
        schema=_schema({1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}, core=(1, 4), oedema=2),
    ),
    "brats2023": Naming(
        years="2023",
        separator="-",
        modalities=_NEW_MODALITIES,
        schema=_schema({1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}, core=(1, 3), oedema=2),
    ),
    "brats2024": Naming(
        years="2024",
        separator="-",
        modalities=_NEW_MODALITIES,
        schema=_schema(
            {1: "non-enhancing tumour core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"},
            core=(1, 3),
            oedema=2,
        ),
    ),
}


def read_brats(root: Path, rules: Rules, layout: str) -> Layout:
    """Read a folder, nested in any way, whose files are named as in a BraTS challenge.

    Modalities are T1, T1ce, T2, FLAIR. A case without segmentation is unlabelled. The subject is the case, or its
    name without the time point if it ends in one ("BraTS-GLI-00005-101").

    Args:
        root: folder to search.
        rules: their `labels` replace the layout's.
        layout: a key of `BRATS`.

    Raises:
        UserError: there are no such files, or the layout does not define the meaning of their labels.
    """
    naming = BRATS[layout]
    problems: list[Finding] = []
    groups: dict[tuple[str, str], dict[str, str]] = {}
    claimed: set[str] = set()
    for file in image_files(root):
        if (parts := naming.split(file)) is None:
            continue
        name, suffix = parts
        claimed.add(file)
        files = groups.setdefault((name, PurePosixPath(file).parent.as_posix()), {})
        if (first := files.setdefault(suffix, file)) != file:
            what = f"{root / file}: {first} is the same modality of the same case"
            problems.append(Finding(name, "error", "duplicate-file", what, "remove one of them"))
    if not groups:
        raise UserError(f"no files in BraTS {naming.years} naming", "choose another layout or root", path=root)
    if layout == "brats2024" and "labels" not in rules.schema and any("BraTS-PED" in name for name, _ in groups):
        raise UserError(
            "BraTS-PEDs 2024 has label values of its own",
            "define them under labels in rules=FILE",
            path=root,
        )

    cases: dict[str, Case] = {}
    for (name, folder), files in sorted(groups.items()):
        found = _faults(root, naming, name, folder, files)
        if not found and name in cases:
            earlier = PurePosixPath(cases[name].images[0]).parent
            what = f"{root / folder}: case {name} occurs twice, also in {earlier}"
            found = [Finding(name, "error", "duplicate-file", what, "remove or rename one of them")]
            if os.path.samefile(root / earlier, root / folder):
                what = f"{root / folder}: not used, because it is a link to {earlier}, where the case was read"
                found = [Finding(name, "note", "unused-file", what, "nothing to do")]
        problems += found
        if not found:
            images = tuple(files[suffix] for suffix in naming.modalities)
            cases[name] = Case(name, images, files.get("seg"), default_subject(name))
    manifest = Manifest(
        name=root.name,
        description=f"BraTS {naming.years} naming",
        modalities=tuple(naming.modalities.values()),
        schema=schema_for(rules, naming.schema, str(root)),
        cases=tuple(cases.values()),
        root=str(root),
    )
    return Layout(layout, manifest, "labels" not in rules.schema, tuple(problems), frozenset(claimed))


def _faults(root: Path, naming: Naming, name: str, folder: str, files: Mapping[str, str]) -> list[Finding]:
    if files.keys() == {"seg"}:
        what = f"{root / files['seg']}: a segmentation without images beside it"
        return [Finding(name, "error", "unpaired-label", what, "put it into the folder of its images, or remove it")]
    return [
        Finding(
            name,
            "error",
            "missing-modality",
            f"{root / folder / f'{name}{naming.separator}{suffix}.nii.gz'}: {modality} of case {name} is missing",
            "add it, or remove the case",
        )
        for suffix, modality in naming.modalities.items()
        if suffix not in files
    ]


def _format(name: str) -> LayoutFormat:
    return LayoutFormat(
        partial(read_brats, layout=name),
        has_files=lambda files: any(map(BRATS[name].split, files)),
        confused_with=_CONFUSED.get(name),
    )


_CONFUSED = {
    "brats2023": (
        "brats2024",
        "BraTS 2023 and 2024 name their files alike, and 2024 (after surgery) has a fourth label, 4 resection cavity",
    )
}
BRATS2020, BRATS2023, BRATS2024 = (_format(name) for name in ("brats2020", "brats2023", "brats2024"))
