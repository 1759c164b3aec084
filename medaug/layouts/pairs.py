"""A folder of images and labels in the user's own naming: globs say which is which, a pattern says whose it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.imaging.reading import SUFFIXES, suffix_of
from medaug.layouts.common import Layout, LayoutFormat, image_files, person_of, schema_for, stem
from medaug.layouts.rules import Rules

_MEANING = (
    "say what the values mean: classes=[background,tumour] for 0, 1, or labels in rules=FILE; they are never guessed"
)


def read_pairs(root: Path, rules: Rules) -> Layout:
    """Read a folder by the user's rules.

    A file belongs to the case that group 1 of `rules.case` finds in its path relative to `root`, or that its name
    without suffix is, where there is no such rule. A file that the label's glob takes is never an image. Images
    without label are unlabelled cases.

    Raises:
        UserError: the rules lack a glob or the labels, a glob finds nothing, or a path names no case.
    """
    if not rules.modalities:
        where = rules.source if rules.is_file else "layout=pairs"
        raise UserError(f"{where}: no images are named", "give images=GLOB, or modalities in rules=FILE")
    if "labels" not in rules.schema:
        raise UserError("layout=pairs: the label values have no names", _MEANING)
    files = image_files(root)
    labels = _select(root, files, "label", rules.label, rules) if rules.label is not None else []
    rest = sorted(set(files) - set(labels))

    problems: list[Finding] = []
    images: dict[str, dict[str, str]] = {}
    taken: dict[str, str] = {}
    claimed = set(labels)
    for modality, glob in rules.modalities.items():
        if not isinstance(glob, str):
            raise UserError(f"{rules.source}: modality {modality} is no glob", f"write {modality}: 'images/*.nii.gz'")
        found = _select(root, rest, modality, glob, rules)
        claimed.update(found)
        for case, file in _by_case(root, found, rules.case, problems).items():
            if file in taken:
                raise UserError(
                    f"is both {taken[file]} and {modality}", "make their globs exclude each other", path=root / file
                )
            taken[file] = modality
            images.setdefault(case, {})[modality] = file
    label_of = _by_case(root, labels, rules.case, problems)
    for case, file in sorted(label_of.items()):
        if case not in images:
            what = f"{root / file}: a label without image, none is of case {case}"
            remedy = "add the image, or mend the pattern of the case so that both give the same"
            problems.append(Finding(case, "error", "unpaired-label", what, remedy))

    cases = []
    for case, by_modality in sorted(images.items()):
        missing = [modality for modality in rules.modalities if modality not in by_modality]
        for modality in missing:
            what = f"{root}: {modality} of case {case} is missing, no file {rules.modalities[modality]} is of this case"
            problems.append(Finding(case, "error", "missing-modality", what, "add it or take the case out"))
        if not missing:
            paths = tuple(by_modality[modality] for modality in rules.modalities)
            cases.append(Case(case, paths, label_of.get(case), person_of(case)))
    manifest = Manifest(
        name=root.name,
        description="images and labels paired by the user's rules",
        modalities=tuple(rules.modalities),
        schema=schema_for(rules, {}, rules.source),
        cases=tuple(cases),
        root=str(root),
    )
    return Layout("pairs", manifest, False, tuple(problems), frozenset(claimed))


def _select(root: Path, files: Sequence[str], what: str, glob: str, rules: Rules) -> list[str]:
    """The files that a glob takes; `**` stands for any number of folders."""
    parts = PurePosixPath(glob).parts
    if PurePosixPath(glob).is_absolute() or PureWindowsPath(glob).drive or ".." in parts:
        raise UserError(f"{what}: {glob} is not a path below root", f"write it relative to {root}")
    found = [file for file in files if _matches(PurePosixPath(file).parts, parts)]
    if not found:
        remedy = f"check the glob in {rules.source}" if rules.is_file else "check the glob"
        raise UserError(f"no file {glob} for {what} (of {' '.join(SUFFIXES)})", remedy, path=root)
    return found


def _matches(file: Sequence[str], glob: Sequence[str]) -> bool:
    if not glob:
        return not file
    if glob[0] == "**":
        return _matches(file, glob[1:]) or (bool(file) and _matches(file[1:], glob))
    return bool(file) and _matches_name(file[0], glob[0]) and _matches(file[1:], glob[1:])


def _matches_name(name: str, glob: str) -> bool:
    """Whether a glob takes a name, its suffix as it is or in small letters; umlauts match however they are written."""
    name, glob = (unicodedata.normalize("NFC", text) for text in (name, glob))
    suffix = suffix_of(name)
    return fnmatchcase(name, glob) or fnmatchcase(name.removesuffix(suffix) + suffix.lower(), glob)


def _by_case(root: Path, files: Sequence[str], pattern: str | None, problems: list[Finding]) -> dict[str, str]:
    """Case -> file; a second file of a case becomes a problem that names both."""
    found: dict[str, str] = {}
    for file in files:
        match = re.search(pattern, file) if pattern is not None else None
        case = stem(file) if pattern is None else unicodedata.normalize("NFC", match[1] or "") if match else None
        if not case:
            raise UserError(
                f"the pattern {pattern} finds no group 1 in it", "mend it or narrow the glob", path=root / file
            )
        if "/" in case:
            raise UserError(
                f"group 1 of {pattern} is {case}, which reaches over a folder",
                "write [^/]+ for the case",
                path=root / file,
            )
        if (first := found.setdefault(case, file)) != file:
            what = f"{root / file}: case {case} has this file and {first}"
            problems.append(
                Finding(
                    case, "error", "duplicate-file", what, "remove one, or mend the pattern of the case or the glob"
                )
            )
    return found


PAIRS = LayoutFormat(read_pairs, unused="no glob finds it", rule_keys=frozenset({"modalities", "label", "case"}))
