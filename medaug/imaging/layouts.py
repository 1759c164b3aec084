"""Folder layouts that people really have, read into a Manifest with every case in the split "train".

Files are paired by name, never by their position in two sorted lists, and a layout proposes the labels of its
publisher: values are not guessed from what occurs in the files. macOS left-overs ("._x") and hidden files are
passed over.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from medaug.cohort.manifest import Case, Manifest, read_json
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError

logger = logging.getLogger(__name__)

PHANTOM_MARK = "PHANTOM.txt"  # written by medaug.imaging.phantom beside its cases


@dataclass(frozen=True)
class _Naming:
    """How one generation of the BraTS challenge names its files: <case><separator><suffix>.nii.gz."""

    years: str
    separator: str
    modalities: Mapping[str, str]  # suffix -> modality, in the order of the manifest
    schema: LabelSchema

    def split(self, file_name: str) -> tuple[str, str] | None:
        """Return (case, suffix), None for a file that is not named so."""
        suffixes = "|".join([*self.modalities, "seg"])
        found = re.fullmatch(rf"(.+){self.separator}({suffixes})\.nii(?:\.gz)?", file_name)
        return (found[1], found[2]) if found else None


_BRATS: Mapping[str, _Naming] = {
    "brats2020": _Naming(
        years="2018-2021",
        separator="_",
        modalities={"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"},
        schema=LabelSchema(((0, "background"), (1, "necrotic core"), (2, "oedema"), (4, "enhancing tumour"))),
    ),
    "brats2023": _Naming(
        years="2023",
        separator="-",
        modalities={"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR"},
        schema=LabelSchema(((0, "background"), (1, "necrotic core"), (2, "oedema"), (3, "enhancing tumour"))),
    ),
}
# BraTS-GLI-00005-100 and BraTS-GLI-00005-101 are two time points of one person.
_BRATS_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+")


def read_msd(root: Path) -> Manifest:
    """Read a Medical Segmentation Decathlon task: dataset.json and the 3-D or 4-D files that it lists.

    Modalities and labels come from dataset.json; its "test" images, without public labels, are left out.
    Each case is its own subject: nothing in the layout says more, see `medaug.cohort.splits.subject_of`.

    Raises:
        UserError: dataset.json is missing or wrong.
    """
    path = root / "dataset.json"
    data = read_json(path)
    entries = data.get("training")
    if isinstance(entries, list):
        data["training"] = [entry for entry in entries if not _is_apple_double(entry)]
    manifest = Manifest.from_mapping(data, root, str(path))
    return replace(manifest, cases=tuple(sorted(manifest.cases, key=lambda case: case.name)))


def read_brats(root: Path, layout: str) -> Manifest:
    """Read a folder, nested in any way, in the file naming of a BraTS challenge.

    Modalities are T1, T1ce, T2, FLAIR. A case without segmentation is unlabelled. The subject is the case, or
    the person where the name ends in a time point ("BraTS-GLI-00005-101").

    Args:
        root: folder to search.
        layout: "brats2020" (2018-2021: `X_t1.nii.gz`, labels 1, 2, 4) or "brats2023" (`X-t1n.nii.gz`,
            labels 1, 2, 3).

    Raises:
        UserError: no such files, a case lacks a modality, or a file or case is there twice.
    """
    naming = _BRATS[layout]
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for file in _nifti_files(root):
        if (parts := naming.split(PurePosixPath(file).name)) is None:
            continue
        name, suffix = parts
        files = groups.setdefault((name, PurePosixPath(file).parent.as_posix()), {})
        if suffix in files:
            raise UserError(f"{root / file}: {files[suffix]} is the same image; remove one of them")
        files[suffix] = file
    if not groups:
        raise UserError(f"{root}: no files in BraTS {naming.years} naming; choose another layout or root")
    cases = [_brats_case(root, naming, name, folder, files) for (name, folder), files in sorted(groups.items())]
    manifest = Manifest(
        name=root.name,
        description=f"BraTS {naming.years} naming",
        modalities=tuple(naming.modalities.values()),
        schema=naming.schema,
        cases=tuple(cases),
        root=str(root),
    )
    manifest.validate(str(root))
    return manifest


def _brats_case(root: Path, naming: _Naming, name: str, folder: str, files: Mapping[str, str]) -> Case:
    for suffix, modality in naming.modalities.items():
        if suffix not in files:
            file = root / folder / f"{name}{naming.separator}{suffix}.nii.gz"
            raise UserError(f"{file}: {modality} of case {name} is missing; add it or take the case out")
    person = _BRATS_TIME_POINT.fullmatch(name)
    return Case(
        name=name,
        images=tuple(files[suffix] for suffix in naming.modalities),
        label=files.get("seg"),
        subject=person[1] if person else name,
    )


LAYOUTS: Mapping[str, Callable[[Path], Manifest]] = {
    "msd": read_msd,
    "brats2020": lambda root: read_brats(root, "brats2020"),
    "brats2023": lambda root: read_brats(root, "brats2023"),
}


def detect_layout(root: str | os.PathLike[str]) -> str:
    """Return the key in LAYOUTS that a folder follows.

    Raises:
        UserError: no such folder, none of the layouts, or more than one.
    """
    root = _folder(root)
    found = []
    if (root / "dataset.json").is_file() and {"modality", "training"} <= read_json(root / "dataset.json").keys():
        found.append("msd")
    else:  # a dataset.json decides; the names of the files that it lists are free
        names = [PurePosixPath(file).name for file in _nifti_files(root)]
        found += [layout for layout, naming in _BRATS.items() if any(map(naming.split, names))]
    known = ", ".join(LAYOUTS)
    if not found:
        raise UserError(f"{root}: none of the layouts {known} (see the documentation); check root or name the layout")
    if len(found) > 1:
        raise UserError(f"{root}: files in the layouts {' and '.join(found)}; separate them or name one of them")
    return found[0]


def read_layout(root: str | os.PathLike[str], layout: str = "auto") -> Manifest:
    """Read a folder into a manifest; cases sorted by name, all in the split "train".

    Args:
        root: folder of the data, never written to.
        layout: a key of LAYOUTS, or "auto" to detect it.

    Returns:
        The manifest, with `phantom` set where the folder holds the mark of a phantom cohort.

    Raises:
        UserError: as the reader of the layout, or an unknown layout.
    """
    root = _folder(root)
    if layout == "auto":
        layout = detect_layout(root)
        logger.info("%s: layout %s detected", root, layout)
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout}: no such layout; choose auto, {', '.join(LAYOUTS)}")
    # Phantoms must never be taken for patients, whatever layout they come in.
    return replace(LAYOUTS[layout](root), phantom=(root / PHANTOM_MARK).is_file())


def _folder(root: str | os.PathLike[str]) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; check root")
    return path


def _nifti_files(root: Path) -> list[str]:
    """NIfTI files below `root` as sorted paths relative to it, hidden files and folders left out."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.endswith((".nii", ".nii.gz")) and not name.startswith("."):
                found.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(found)


def _is_apple_double(entry: object) -> bool:
    image = entry.get("image") if isinstance(entry, dict) else None
    return isinstance(image, str) and PurePosixPath(image).name.startswith("._")
