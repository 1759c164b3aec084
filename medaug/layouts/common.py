"""What all layouts share: their result, the files below a folder, and the cases and subjects that names stand for."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging.reading import suffix_of
from medaug.layouts.rules import Rules

# BraTS-GLI-00005-100 and BraTS-GLI-00005-101 are two time points of one person.
_BRATS_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+")
_MOST_VISITS = 8  # visits of one folder through links, so that the walk ends even if folders link to each other
# Image names in many formats, whether supported or not, also with endings that copies and downloads add.
_IMAGE = re.compile(
    r"\.(nii|mha|mhd|nrrd|nhdr|img|hdr|mgh|mgz|mnc|gipl|vtk|vti|dcm|dicom|ima|par|rec|head|brik|tiff?|png|jpe?g|bmp)"
    r"(\.(gz|bz2|xz|zst|zip|part|tmp|bak|old|orig|\d+))*( ?\(\d+\)(\.gz)?)?~?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """A folder, read according to its layout.

    Attributes:
        name: the layout, never "auto".
        manifest: the cases that are complete, all in the split "train"; empty if there are none.
        proposed: True if only file names determine the meaning of the label values, so that the user has to confirm
            it; False if a file of the cohort or the user declares it.
        problems: everything that is wrong with the folder; an error there means that a file or case was left out.
        claimed: files, relative to the manifest's root, that belong to the layout, even if they were not used.
    """

    name: str
    manifest: Manifest
    proposed: bool
    problems: tuple[Finding, ...] = ()
    claimed: frozenset[str] = frozenset()

    def valid_manifest(self) -> Manifest:
        """Return the manifest if there are no errors.

        Raises:
            UserError: the first error among `problems`, with the number of the others.
        """
        errors = [finding for finding in self.problems if finding.severity == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more errors, which medaug.ingest lists)" if len(errors) > 1 else ""
            raise UserError(errors[0].what, f"{errors[0].remedy}{more}", path=errors[0].path)
        return self.manifest


@dataclass(frozen=True)
class LayoutFormat:
    """An entry of the table of layouts.

    Attributes:
        read: reads a folder with the user's rules; raises a UserError if nothing can be read.
        unused: why the layout does not use a file; goes into a message.
        has_dataset: whether a `dataset.json` with this content belongs to the layout; None: the layout has none.
        has_files: whether some of these files (sorted paths relative to the folder) are named as in the layout; None:
            file names are free.
        rule_keys: keys of the rules, besides the label schema, that the layout uses.
        confused_with: a layout with the same file names, and how the two differ.
    """

    read: Callable[[Path, Rules], Layout]
    unused: str = "its name does not fit this layout"
    has_dataset: Callable[[Mapping[str, Any]], bool] | None = None
    has_files: Callable[[Sequence[str]], bool] | None = None
    rule_keys: frozenset[str] = frozenset()
    confused_with: tuple[str, str] | None = None


def image_files(root: Path) -> list[str]:
    """Return the files of supported formats below `root`, as sorted paths relative to it.

    Hidden files and folders are skipped. Links are followed, except to a folder that contains them.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """
    return sorted(path for path, reason in _walk(root) if not reason)


def unused_files(root: Path, used: Collection[str], why: str) -> list[Finding]:
    """Return a note for every file below `root` that looks like an image and is not used, with the reason.

    Args:
        root: folder of the cohort.
        used: absolute paths of the files that belong to the cohort.
        why: the reason for files that could be read, such as "no glob matches it".
    """
    return [
        Finding(root.name, "note", "unused-file", f"{root / path}: not used, {reason or why}", remedy)
        for path, reason in sorted(_walk(root))
        if os.path.normpath(root / path) not in used
        for remedy in ["nothing to do if it is not a scan of this cohort; otherwise see the layout in docs/data.md"]
    ]


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """Yield everything below `root` that looks like an image: its relative path, and why it cannot be used or ""."""

    def refuse(error: OSError) -> None:
        raise UserError("cannot be read", "correct its permissions", path=error.filename, detail=error.strerror or "")

    parents: dict[str, frozenset[str]] = {str(root): frozenset()}  # folder -> real paths of the folders above it
    visits: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real, above = os.path.realpath(folder), parents.pop(folder)
        visits[real] += 1
        if real in above or visits[real] > _MOST_VISITS:
            yield _relative(folder, root), "a link to a folder that was read before"
            folders.clear()
            continue
        hidden = sorted(name for name in folders if name.startswith("."))
        folders[:] = sorted(set(folders) - set(hidden))
        parents |= {os.path.join(folder, name): above | {real} for name in folders}
        for name in hidden:
            inside = (file for _, _, content in os.walk(os.path.join(folder, name)) for file in content)
            if any(_looks_like_image(file) for file in inside):
                yield _relative(os.path.join(folder, name), root), "a hidden folder"
        for name in files:
            if _looks_like_image(name):
                reason = "" if suffix_of(name) else "of a format that this layout does not read"
                yield _relative(os.path.join(folder, name), root), "a hidden file" if name[0] == "." else reason


def _looks_like_image(name: str) -> bool:
    """Whether a file is named like an image of any format; macOS's metadata files ("._x") are not images."""
    return not name.startswith("._") and _IMAGE.search(name) is not None


def _relative(path: str, root: Path) -> str:
    relative = Path(path).relative_to(root).as_posix()
    if not relative.isprintable():
        raise UserError(f"{relative!a}: the name is not UTF-8 text on one line", "rename the file")
    return relative


def stem(file: str) -> str:
    """Return a file's name without folder and suffix, in Unicode NFC.

    macOS may write an umlaut as two characters (NFD), other systems write one (NFC). With one form for all, an image
    and its label have equal names.
    """
    name = PurePosixPath(file).name
    return unicodedata.normalize("NFC", name.removesuffix(suffix_of(name)))


def default_subject(case: str) -> str:
    """Return the subject that a case's name stands for: the case itself, or its BraTS name without the time point."""
    found = _BRATS_TIME_POINT.fullmatch(case)
    return found[1] if found else case


def schema_for(rules: Rules, declared: Mapping[str, Any], source: str) -> LabelSchema:
    """Return the layout's schema, overridden by the user's rules.

    If the rules have `labels`, nothing of the layout's schema is kept, because its regions refer to other values.
    Otherwise the rules replace single keys.

    Args:
        rules: the user's rules.
        declared: `labels`, `regions`, `ignore`, `remap` as the layout has them.
        source: where the layout's schema comes from, for messages.

    Raises:
        UserError: as for `LabelSchema.from_mapping`.
    """
    if "labels" in rules.schema:
        return LabelSchema.from_mapping(rules.schema, rules.source)
    return LabelSchema.from_mapping({**declared, **rules.schema}, rules.source if rules.schema else source)
