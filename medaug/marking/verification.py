"""Verifies files: whether medaug made them, whether they are unchanged, and what made them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pydicom

from medaug.cohort import provenance
from medaug.dicom.instance import quiet
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.imaging.nifti import read_description
from medaug.imaging.reading import suffix_of
from medaug.inputs import opened
from medaug.marking.mark import (
    PHANTOM_NOTE,
    SYNTHETIC_NOTE,
    Mark,
    dicom_digest,
    read_dataset_mark,
    read_mark,
    read_sidecar,
    sidecar,
)

SYNTHETIC, PHANTOM, UNMARKED = "synthetic", "phantom", "not marked"
UNCHANGED, CHANGED, MISSING, UNKNOWN, UNREADABLE = "unchanged", "changed", "missing", "unknown", "unreadable"
UNSIGNED, SIGNED, TRUSTED, FORGED = "not signed", "signed", "signed by your key", "wrongly signed"


@dataclass(frozen=True)
class Verdict:
    """What is known about one file.

    Attributes:
        path: the file.
        origin: "synthetic" (made by medaug), "phantom" (computed, exported by medaug) or "not marked".
        state: "unchanged" since it was written, "changed", "missing" (only its mark is there), "unreadable", or
            "unknown" if there is no record to compare it with.
        recipe: what made the file; empty if that is not recorded.
        version: version of medaug that wrote the file; "" if that is not recorded.
        signature: "not signed", "signed" (with the key that the mark names), "signed by your key", or "wrongly signed".
        reason: why the file is unreadable.
    """

    path: Path
    origin: str
    state: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    signature: str = UNSIGNED
    reason: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the file does not agree with its mark or cannot be read."""
        return self.state in {CHANGED, MISSING, UNREADABLE} or self.signature == FORGED

    def to_mapping(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON values."""
        return {**vars(self), "path": str(self.path), "recipe": dict(self.recipe)}

    def __str__(self) -> str:
        """Return one line: path, origin, state, signature, and what made the file."""
        parts = [self.origin]
        parts += [f"{self.state} ({self.reason})" if self.reason else self.state] if self.state != UNKNOWN else []
        parts += [self.signature] if self.signature != UNSIGNED else []
        if self.recipe:
            digest, checkpoint = provenance.recipe_digest(self.recipe), self.recipe.get("checkpoint", "")
            parts.append(f"recipe {digest[:12]} of checkpoint {checkpoint[:12]}")
        parts += [f"medaug {self.version}"] if self.version else []
        return f"{self.path}: {', '.join(parts)}"


def verify(path: Path, public_key: str | None = None) -> list[Verdict]:
    """Verify a file, or every file below a folder that holds a volume or DICOM.

    Args:
        path: path of a file or folder; links in a folder are not followed.
        public_key: key in hexadecimal; None: each signature is checked with the key that it names.

    Returns:
        One verdict per file, sorted by path.

    Raises:
        UserError: there is no such file or folder, or a provenance file is damaged.
    """
    if not path.exists():
        raise UserError("no such file or folder", "check the path", path=path)
    _recorded.cache_clear()
    if not path.is_dir():
        return [_verdict(path, public_key)]
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    volumes = [file for file in files if suffix_of(file.name) or _is_dicom(file)]
    found = [_verdict(file, public_key) for file in volumes]
    return sorted([*found, *_missing(files, volumes)], key=lambda verdict: verdict.path)


def _verdict(path: Path, public_key: str | None) -> Verdict:
    try:
        return _dicom(path, public_key) if _is_dicom(path) else _volume(path, public_key)
    except UserError as error:
        return Verdict(path, UNMARKED, UNREADABLE, reason="; ".join(filter(None, (error.full, error.remedy))))


def _dicom(path: Path, public_key: str | None) -> Verdict:
    try:
        with quiet():
            dataset = pydicom.dcmread(path)
            mark, digest = read_dataset_mark(dataset, path), dicom_digest(dataset)
            dataset.SOPClassUID  # noqa: B018 (raises an error if it is missing because the file is cut short)
    except UserError:
        raise
    except Exception as error:  # pydicom has no base class for what a damaged file can raise
        raise UserError("is damaged", "copy it again", path=path, detail=type(error).__name__) from error
    if mark is None:
        synthetic = dataset.get("SyntheticData") == "YES" and dataset.get("Manufacturer") == "medaug"
        return Verdict(path, SYNTHETIC if synthetic else UNMARKED, UNKNOWN)
    return _compared(path, mark, digest, public_key)


def _volume(path: Path, public_key: str | None) -> Verdict:
    """The verdict on a file that is not DICOM, from the JSON file beside it or from the provenance of its run."""
    if (mark := read_sidecar(path)) is not None:
        return _compared(path, mark, file_sha256(path), public_key)
    note = read_description(path) if suffix_of(path.name).lower() in {".nii", ".nii.gz"} else ""
    for folder in path.absolute().parents[:3]:
        inside = path.absolute().relative_to(folder)
        if inside.parts[0] == provenance.REJECTED_FOLDER:  # where screening moves files
            inside = inside.relative_to(provenance.REJECTED_FOLDER)
        record, digest = _recorded(folder).get(inside, ({}, ""))
        if digest:
            state = UNCHANGED if file_sha256(path) == digest else CHANGED
            return Verdict(path, SYNTHETIC, state, provenance.recipe_of(record), str(record.get("version", "")))
    origin = SYNTHETIC if note.startswith(SYNTHETIC_NOTE) else PHANTOM if note == PHANTOM_NOTE else UNMARKED
    return Verdict(path, origin, UNKNOWN)


def _compared(path: Path, mark: Mark, digest: str, public_key: str | None) -> Verdict:
    signature = UNSIGNED
    if mark.signature:
        own = mark.signature.get("public_key", "")
        valid = mark.is_signed_by(own if public_key is None else public_key)
        signature = FORGED if not valid else SIGNED if public_key is None else TRUSTED
    state = UNCHANGED if digest == mark.sha256 else CHANGED
    return Verdict(path, SYNTHETIC, state, mark.recipe, mark.version, signature)


@cache
def _recorded(folder: Path) -> dict[Path, tuple[Mapping[str, Any], str]]:
    """The files that the provenance in a folder records: relative path to record and SHA-256."""
    records = provenance.read_all(folder).values()
    return {Path(file): (one, digest) for one in records for file, digest in one.get("contents", {}).items()}


def _missing(files: Iterable[Path], volumes: Iterable[Path]) -> Iterator[Verdict]:
    """Files that are gone although their mark or record is still there."""
    marked = {sidecar(volume) for volume in volumes}
    for file in files:
        if file.suffix == ".json" and file not in marked:
            with contextlib.suppress(UserError):  # a JSON file of another kind
                mark = read_mark(file)
                if mark is not None:
                    yield Verdict(file, SYNTHETIC, MISSING, mark.recipe, mark.version)
    for folder in {file.parent.absolute() for file in files if re.fullmatch(r"provenance.*\.jsonl", file.name)}:
        for inside, (record, _) in _recorded(folder).items():
            if not (folder / inside).exists() and not (folder / provenance.REJECTED_FOLDER / inside).exists():
                yield Verdict(folder / inside, SYNTHETIC, MISSING, provenance.recipe_of(record))


def _is_dicom(path: Path) -> bool:
    """Whether a file has "DICM" after its preamble of 128 bytes."""
    try:
        with opened(path) as file:
            return file.read(132)[128:] == b"DICM"
    except UserError:
        return False
