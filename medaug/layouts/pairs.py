"""A folder of images and labels with any names: globs select the files, and a pattern gives the case of each."""

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
from medaug.layouts.common import Layout, LayoutFormat, default_subject, image_files, schema_for, stem
from medaug.layouts.rules import Rules

_MEANING = "give them with classes=[background,tumour] for 0, 1, or labels in rules=FILE; they are never guessed"


def read_pairs(root: Path, rules: Rules) -> Layout:
    """Read a folder by the user's rules.

    Group 1 of `rules.case`, searched in a file's path relative to `root`, is its case; without that rule, its name
    without suffix is. A file that the label's glob matches is never an image. Images without a label are unlabelled.

    Raises:
        UserError: the rules lack a glob or the labels, a glob matches nothing, or the pattern does not match a path.
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
    modality_of: dict[str, str] = {}
    claimed = set(labels)
    for modality, glob in rules.modalities.items():
        if not isinstance(glob, str):
            raise UserError(
                f"modality {modality} is not a glob", f"write {modality}: 'images/*.nii.gz'", path=rules.source
            )
        found = _select(root, rest, modality, glob, rules)
        claimed.update(found)
        for case, file in _by_case(root, found, rules.case, problems).items():
            if other := modality_of.get(file):
                raise UserError(f"is both {other} and {modality}", "make their globs disjoint", path=root / file)
            modality_of[file] = modality
            images.setdefault(case, {})[modality] = file
    label_of = _by_case(root, labels, rules.case, problems)
    for case, file in sorted(label_of.items()):
        if case not in images:
            what = f"{root / file}: a label without an image of case {case}"
            remedy = "add the image, or correct case_pattern so that image and label give the same case"
            problems.append(Finding(case, "error", "unpaired-label", what, remedy))

    cases = []
    for case, by_modality in sorted(images.items()):
        missing = [modality for modality in rules.modalities if modality not in by_modality]
        for modality in missing:
            what = f"{root}: {modality} of case {case} is missing: no file {rules.modalities[modality]} is of this case"
            problems.append(Finding(case, "error", "missing-modality", what, "add it, or remove the case"))
        if not missing:
            paths = tuple(by_modality[modality] for modality in rules.modalities)
            cases.append(Case(case, paths, label_of.get(case), default_subject(case)))
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
    """Return the files that a glob matches; `**` stands for any number of folders."""
    parts = PurePosixPath(glob).parts
    if PurePosixPath(glob).is_absolute() or PureWindowsPath(glob).drive or ".." in parts:
        raise UserError(f"{what}: {glob} is not a path below root", f"write it relative to {root}")
    found = [file for file in files if _matches(PurePosixPath(file).parts, parts)]
    if not found:
        remedy = f"check the glob in {rules.source}" if rules.is_file else "check the glob"
        raise UserError(f"no file matches {glob} for {what} (formats: {' '.join(SUFFIXES)})", remedy, path=root)
    return found


def _matches(file: Sequence[str], glob: Sequence[str]) -> bool:
    if not glob:
        return not file
    if glob[0] == "**":
        return _matches(file, glob[1:]) or (bool(file) and _matches(file[1:], glob))
    return bool(file) and _matches_name(file[0], glob[0]) and _matches(file[1:], glob[1:])


def _matches_name(name: str, glob: str) -> bool:
    """Whether a glob matches a name, with its suffix as it is or in lower case, and in any Unicode normal form."""
    name, glob = (unicodedata.normalize("NFC", text) for text in (name, glob))
    suffix = suffix_of(name)
    return fnmatchcase(name, glob) or fnmatchcase(name.removesuffix(suffix) + suffix.lower(), glob)


def _by_case(root: Path, files: Sequence[str], pattern: str | None, problems: list[Finding]) -> dict[str, str]:
    """Return case -> file; a second file of a case is added to `problems`."""
    found: dict[str, str] = {}
    for file in files:
        match = re.search(pattern, file) if pattern is not None else None
        case = stem(file) if pattern is None else unicodedata.normalize("NFC", match[1] or "") if match else None
        if not case:
            raise UserError(
                f"the pattern {pattern} finds no group 1 in it", "correct it, or narrow the glob", path=root / file
            )
        if "/" in case:
            raise UserError(
                f"group 1 of {pattern} is {case}, which contains a slash",
                "write [^/]+ for the case",
                path=root / file,
            )
        if (first := found.setdefault(case, file)) != file:
            what = f"{root / file}: case {case} has both this file and {first}"
            remedy = "remove one, or correct case_pattern or the glob"
            problems.append(Finding(case, "error", "duplicate-file", what, remedy))
    return found


PAIRS = LayoutFormat(read_pairs, unused="no glob matches it", rule_keys=frozenset({"modalities", "label", "case"}))
