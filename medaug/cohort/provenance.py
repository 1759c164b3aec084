"""Provenance of synthetic pairs: the Recipe of a pair, and the append-only file with a record of every attempt."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from medaug.errors import UserError
from medaug.files import sync
from medaug.inputs import opened

_LONGEST_LINE = 1 << 20
_KINDS: dict[str, tuple[type, type]] = {
    **dict.fromkeys(("index", "attempt", "seed"), (int, object)),
    **dict.fromkeys(("name", "host", "host_subject", "label", "confidence", "checkpoint"), (str, object)),
    **dict.fromkeys(("subjects", "images", "mask_validation_subjects", "negative_classes"), (list, str)),
    "scores": (list, list),
    **dict.fromkeys(("files", "contents"), (dict, str)),
    "attributes": (dict, object),
    "screening": (dict, dict),
    "screener": (str, object),
}
"""Fields of a record: the type of the value, and of the items in it."""

_DIGEST = "digest"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines one synthetic pair; the same recipe and checkpoint give the same pair.

    Attributes:
        index: number of the pair.
        attempt: 0 for the first attempt; after a rejection the next number is tried.
        host: name of the real training case whose grid (and, before deformation, mask) is used.
        host_subject: its subject.
        mask_source: name of the mask source ("real", "deformed", ...).
        mask_parameters: what the mask source needs besides the host, JSON values only.
        guidance_scale: classifier-free guidance; 1 is none, 0 ignores the mask.
        sampler: name of the sampler.
        num_inference_steps: steps of the sampler.
        eta: share of noise added per step (DDIM): 0 deterministic, 1 ancestral.
        seed: seed of this pair's noise.
        checkpoint: SHA-256 of the checkpoint file, hexadecimal.
        spacing: how the sampler's time steps are distributed.
        guidance_interval: the two times between which guidance is applied; None: at all times.
        guidance_rescale: 0 to 1, how strongly the contrast of the guided sample is restored.
        negative_classes: names of classes. Guidance moves away from the mask without these classes; if empty, from
            the unconditional model.
        attributes: attributes that the model is conditioned on, by name: texts, numbers, and "spacing" as three voxel
            sizes in mm along R, A, S. Attributes that are not named are unknown.
        parameters: further options of the sampler, by name.
        overlap: share by which the windows of a model of patches overlap; None: half.

    Fields with defaults were added later; a recipe without them was made with the defaults.
    """

    index: int
    attempt: int
    host: str
    host_subject: str
    mask_source: str
    mask_parameters: dict[str, Any]
    guidance_scale: float
    sampler: str
    num_inference_steps: int
    eta: float
    seed: int
    checkpoint: str
    spacing: str = "trailing"
    guidance_interval: list[float] | None = None
    guidance_rescale: float = 0.0
    negative_classes: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)
    overlap: float | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON values, without an overlap if there is none."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("overlap", None)}

    def to_json(self) -> str:
        """Return the recipe as one line of JSON, without a newline."""
        return _line(self.to_mapping())

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Recipe:
        """Build a recipe from a mapping that may have more keys (a provenance record).

        Raises:
            UserError: a field without a default is missing.
        """
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in needed if name not in mapping]
        if missing:
            raise UserError(
                f"recipe: {', '.join(missing)} missing", "another version wrote it; generate the pairs again"
            )
        return cls(**{f.name: mapping[f.name] for f in fields(cls) if f.name in mapping})

    @classmethod
    def from_json(cls, line: str) -> Recipe:
        """Parse what `to_json` returned."""
        try:
            mapping = json.loads(line)
        except ValueError as error:
            raise UserError(f"recipe: not JSON ({error})", "generate again") from error
        return cls.from_mapping(mapping)


PAIR = (
    *(f.name for f in fields(Recipe) if f.default is MISSING and f.default_factory is MISSING),
    *("name", "images", "label", "subjects"),
)
"""Fields that the record of a pair must have."""
REJECTED = ("name", "host", "host_subject", "checkpoint", "subjects", "screening")
"""Fields that the record of a rejected pair must have."""
REJECTED_FOLDER = "rejected"
"""Folder, within that of a run, with the records and, on request, the files of rejected pairs."""
PREDICTION = ("subjects", "name", "checkpoint", "files", "scores")
"""Fields that the record of a prediction must have."""


def rank_file(folder: str | os.PathLike[str], rank: int) -> Path:
    """Return the file in `folder` that a process appends to: provenance.jsonl for rank 0, one per rank beyond."""
    return Path(folder) / ("provenance.jsonl" if rank == 0 else f"provenance.rank{rank}.jsonl")


def append(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append one record (a line of JSON) to a provenance.jsonl and wait until it is on the disk.

    A record has "index", "attempt" and "subjects" (everyone whose data went into the pair), usually the fields of a
    Recipe, and the results of screening. If a killed process left an unfinished line, that line is removed first.
    Only one process may write to a file at a time; concurrent processes use one file each (`rank_file`). The line
    also holds a digest of the record, so that `read` notices later changes.

    Raises:
        UserError: the disk is full.
        ValueError: the record lacks its key or subjects, or cannot be written as JSON (NaN cannot).
    """
    missing = [key for key in ("index", "attempt", "subjects") if key not in record]
    if missing:
        raise ValueError(f"provenance record without {', '.join(missing)}")
    line = (_line({**record, _DIGEST: record_digest(record)}) + "\n").encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "ab+", buffering=0) as file:
        _cut_unfinished_line(file)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            if new:
                sync(path.parent)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise UserError(
                    "the disk is full", "free some space and run the same command again", path=path
                ) from error
            raise


def read(path: str | os.PathLike[str], required: Sequence[str] = ()) -> dict[tuple[int, int], dict[str, Any]]:
    """Read a provenance.jsonl as {(index, attempt): record}, in the order written; {} if there is no file.

    A last line without a newline was cut short by a killed process and is ignored. If a key occurs twice, the later
    record counts. Records that were written before digests existed are not checked.

    Args:
        path: the file.
        required: fields that every record must have besides index and attempt, such as `PAIR`.

    Raises:
        UserError: the file cannot be read; or a line, which is named by its number, is not a record, lacks a field, or
            was changed after it was written.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return {}
    records = {}
    with opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                break
            try:
                record = _checked(json.loads(line), required)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UserError(
                    f"line {number} is not a provenance record ({reason:.120})",
                    "restore the file or remove it",
                    path=path,
                ) from error
            digest = record.pop(_DIGEST, None)
            if digest is not None and digest != record_digest(record):
                name = record.get("name", f"number {record['index']}")
                raise UserError(
                    f"line {number} ({name}) was changed after it was written",
                    "restore the file, or remove the folder and make its files again",
                    path=path,
                )
            records[record["index"], record["attempt"]] = record
    return records


def read_all(folder: str | os.PathLike[str], required: Sequence[str] = ()) -> dict[tuple[int, int], dict[str, Any]]:
    """Read the records of all processes in `folder` as {(index, attempt): record}, sorted by key.

    Raises:
        UserError: as for `read`.
    """
    records: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("provenance*.jsonl")):
        records |= read(path, required)
    return dict(sorted(records.items()))


def _checked(record: Any, required: Sequence[str]) -> dict[str, Any]:
    """Return the record if it has all required fields, each of the right type; raise KeyError or TypeError if not."""
    for name in ("index", "attempt", *required):
        if name not in record:
            raise KeyError(name)
    for name, (kind, item_kind) in _KINDS.items():
        value = record.get(name, kind())
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if type(value) is not kind or not all(isinstance(item, item_kind) for item in items):
            raise TypeError(f"{name} is {value!r:.60}")
    return dict(record)


def record_digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record, hexadecimal; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode()).hexdigest()


def recipe_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Recipe` that a record holds."""
    return {f.name: record[f.name] for f in fields(Recipe) if f.name in record}


def recipe_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of the recipe in a record, hexadecimal."""
    return record_digest(recipe_of(record))


def _line(mapping: Mapping[str, Any]) -> str:
    return json.dumps(dict(mapping), ensure_ascii=False, allow_nan=False)


def _cut_unfinished_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
