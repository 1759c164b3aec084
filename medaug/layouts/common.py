"""What all layouts share: the result, the files below a folder, and how names become cases and persons."""

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
_MOST_VISITS = 8  # of one folder by links, so that folders linked crosswise come to an end
# Names of images in many formats, those read here among them, also with what copies and downloads leave behind them.
_IMAGE = re.compile(
    r"\.(nii|mha|mhd|nrrd|nhdr|img|hdr|mgh|mgz|mnc|gipl|vtk|vti|dcm|dicom|ima|par|rec|head|brik|tiff?|png|jpe?g|bmp)"
    r"(\.(gz|bz2|xz|zst|zip|part|tmp|bak|old|orig|\d+))*( ?\(\d+\)(\.gz)?)?~?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """A folder as its layout reads it.

    Attributes:
        name: the layout, never "auto".
        manifest: the cases that could be built, all in the split "train"; empty where none could.
        proposed: the meaning of the label values follows from file names alone, so that a user has to confirm it;
            False where the cohort's own file or the user declares it.
        problems: what is wrong with the folder, in one pass; an error there left a file or a case out.
        claimed: files, relative to the manifest's root, that have a place in the layout, though perhaps a wrong one.
    """

    name: str
    manifest: Manifest
    proposed: bool
    problems: tuple[Finding, ...] = ()
    claimed: frozenset[str] = frozenset()

    def sound(self) -> Manifest:
        """Return the manifest.

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
        read: a folder and the user's rules to the cases; raises a UserError if nothing can be read.
        unused: why the layout has no place for a file.
        has_dataset: whether a `dataset.json` with this content is of the layout; None: the layout has none.
        has_files: whether these files (sorted paths relative to the folder) are named as in the layout; None: their
            names are free.
        rule_keys: keys of the rules, besides the label schema, that the layout reads.
        confused_with: a layout that names its files alike, and what tells the two apart.
    """

    read: Callable[[Path, Rules], Layout]
    unused: str = "its name is none of this layout"
    has_dataset: Callable[[Mapping[str, Any]], bool] | None = None
    has_files: Callable[[Sequence[str]], bool] | None = None
    rule_keys: frozenset[str] = frozenset()
    confused_with: tuple[str, str] | None = None


def image_files(root: Path) -> list[str]:
    """Files of a known format below `root` as sorted paths relative to it.

    Hidden files and folders are passed over; links are followed, except back to a folder that holds them.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """
    return sorted(path for path, reason in _walk(root) if not reason)


def unused_files(root: Path, used: Collection[str], why: str) -> list[Finding]:
    """A note for every file below `root` that looks like an image and is not used, with the reason.

    Args:
        root: of the cohort.
        used: absolute paths of the files that have a place in the cohort.
        why: the reason where nothing else keeps a file out, as "no glob finds it".
    """
    return [
        Finding(root.name, "note", "unused-file", f"{root / path}: not used, {reason or why}", remedy)
        for path, reason in sorted(_walk(root))
        if os.path.normpath(root / path) not in used
        for remedy in ["nothing, if it is no scan of this cohort; else see the layout in docs/data.md"]
    ]


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """What looks like an image below `root`: path relative to it, and why it cannot be used, "" where it can."""

    def refuse(error: OSError) -> None:
        raise UserError("cannot be read", "correct its permissions", path=error.filename, detail=error.strerror or "")

    above: dict[str, frozenset[str]] = {str(root): frozenset()}  # the true paths of the folders that hold a folder
    visits: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real, holders = os.path.realpath(folder), above.pop(folder)
        visits[real] += 1
        if real in holders or visits[real] > _MOST_VISITS:
            yield _relative(folder, root), "a link to a folder that was read before"
            folders.clear()
            continue
        hidden = sorted(name for name in folders if name.startswith("."))
        folders[:] = sorted(set(folders) - set(hidden))
        above |= {os.path.join(folder, name): holders | {real} for name in folders}
        for name in hidden:
            inside = (file for _, _, content in os.walk(os.path.join(folder, name)) for file in content)
            if any(_looks_like_image(file) for file in inside):
                yield _relative(os.path.join(folder, name), root), "a hidden folder"
        for name in files:
            if _looks_like_image(name):
                reason = "" if suffix_of(name) else "of a format that this layout does not read"
                yield _relative(os.path.join(folder, name), root), "a hidden file" if name[0] == "." else reason


def _looks_like_image(name: str) -> bool:
    """Whether a file's name is that of an image, of whatever format; macOS's left-overs ("._x") are none."""
    return not name.startswith("._") and _IMAGE.search(name) is not None


def _relative(path: str, root: Path) -> str:
    relative = Path(path).relative_to(root).as_posix()
    if not relative.isprintable():
        raise UserError(f"{relative!a}: the name is not UTF-8 text on one line", "rename the file")
    return relative


def stem(file: str) -> str:
    """Return a file's name without folder and without the suffix of its format.

    macOS may write an umlaut as two characters (Unicode NFD) where other systems write one (NFC): names are given in
    NFC, so that an image and its label find each other.
    """
    name = PurePosixPath(file).name
    return unicodedata.normalize("NFC", name.removesuffix(suffix_of(name)))


def person_of(case: str) -> str:
    """Return the person behind a case: the case itself, unless its name ends in a BraTS time point."""
    found = _BRATS_TIME_POINT.fullmatch(case)
    return found[1] if found else case


def schema_for(rules: Rules, declared: Mapping[str, Any], source: str) -> LabelSchema:
    """The schema that a layout found, overridden by what the rules say.

    Rules with `labels` replace it whole, for its regions speak of other values; rules without replace single keys.

    Args:
        rules: the user's rules.
        declared: `labels`, `regions`, `ignore`, `remap` as the layout has them.
        source: where the layout has them from, for messages.

    Raises:
        UserError: as `LabelSchema.from_mapping`.
    """
    if "labels" in rules.schema:
        return LabelSchema.from_mapping(rules.schema, rules.source)
    return LabelSchema.from_mapping({**declared, **rules.schema}, rules.source if rules.schema else source)
