"""Reads the header of every file of a DICOM tree, without pixels, and groups the files into series.

Files are grouped by PatientID, StudyInstanceUID and SeriesInstanceUID and sorted by content. Folders and file names
have no meaning, so renaming or moving a file changes no result. Values may identify people: nothing here is logged.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medaug.dicom.instance import Instance, Record, read_headers
from medaug.errors import UserError
from medaug.imaging.volume import MEMORY
from medaug.isolation import Failure, isolated

_FILES_PER_ITEM = 64


@dataclass(frozen=True)
class Series:
    """The files that share PatientID, StudyInstanceUID and SeriesInstanceUID.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        patient_id: PatientID, "" if it is missing.
        modality: Modality.
        number: SeriesNumber, None if it is missing.
        frame_of_reference: FrameOfReferenceUID, "" if it is missing.
        attributes: header values of the first instance that rules may match, as text by keyword; multiple values are
            joined by a backslash.
        instances: sorted by SOPInstanceUID; exact copies of a file are merged with it.
        sop_class: SOPClassUID of the first instance.
    """

    uid: str
    study_uid: str
    patient_id: str
    modality: str
    number: int | None
    frame_of_reference: str
    attributes: Mapping[str, str]
    instances: tuple[Instance, ...]
    sop_class: str

    @property
    def title(self) -> str:
        """A description of the series for messages; it identifies nobody."""
        return "series without a number" if self.number is None else f"series {self.number}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its files, including copies."""
        return tuple(path for one in self.instances for path in one.paths)

    def with_instances(self, instances: Sequence[Instance]) -> Series:
        """Return the series with only these of its instances."""
        first = instances[0]
        return replace(
            self,
            modality=first.attributes.get("Modality", ""),
            frame_of_reference=first.attributes.get("FrameOfReferenceUID", ""),
            attributes=first.attributes,
            instances=tuple(instances),
            sop_class=first.sop_class,
        )


@dataclass(frozen=True)
class Tree:
    """The DICOM files below a folder.

    Attributes:
        series: sorted by patient, study, series number and UID.
        unreadable: (path, reason) of files that are DICOM, or named like it, and cannot be read.
        ignored: number of files that are not DICOM.
    """

    series: tuple[Series, ...]
    unreadable: tuple[tuple[Path, str], ...]
    ignored: int


def scan_tree(root: str | os.PathLike[str], workers: int = 0) -> Tree:
    """Read the header of every DICOM file below a folder, in parallel, with a progress bar.

    Hidden files, macOS's `__MACOSX` and DICOMDIR are skipped. Links are followed, but each folder is read once.

    Args:
        root: the folder; its files may be nested in any way and have any name.
        workers: processes, as for `isolated`.

    Raises:
        UserError: root is not a folder.
    """
    if not Path(root).is_dir():
        raise UserError(f"root={os.fspath(root)}: is not a folder", "give the folder that holds the DICOM files")
    paths, unreadable = _files(Path(root))
    chunks = [tuple(paths[start : start + _FILES_PER_ITEM]) for start in range(0, len(paths), _FILES_PER_ITEM)]
    results: list[Record | str | None] = []
    for chunk, result in zip(
        chunks, isolated(read_headers, chunks, "DICOM headers", workers, memory=MEMORY), strict=True
    ):
        if not isinstance(result, Failure):
            results += result
            continue
        # A file of this chunk crashed the worker: read each one in its own worker to find out which.
        for single in isolated(read_headers, [(path,) for path in chunk], "", workers, memory=MEMORY):
            results.append(single.reason if isinstance(single, Failure) else single[0])
    return _tree(paths, results, unreadable)


def scan_in_process(root: str | os.PathLike[str]) -> Tree:
    """Like `scan_tree`, for one file or a small folder: in this process, and without a progress bar."""
    paths, unreadable = ([Path(root)], []) if Path(root).is_file() else _files(Path(root))
    return _tree(paths, read_headers(paths), unreadable)


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _files(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return all files below root, sorted, and (path, reason) of the folders that cannot be listed."""
    found: list[Path] = []
    failed: list[tuple[Path, str]] = []
    seen = {os.path.realpath(root)}

    def record(error: OSError) -> None:
        failed.append((Path(error.filename), f"cannot be listed ({error.strerror})"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=record):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not is_skipped(name) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [Path(folder, name) for name in files if not is_skipped(name) and name.upper() != "DICOMDIR"]
    return sorted(found), failed


def _tree(
    paths: Sequence[Path], results: Sequence[Record | str | None], unreadable: Sequence[tuple[Path, str]]
) -> Tree:
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for result in results:
        if isinstance(result, Record):
            groups[result.patient_id, result.study_uid, result.series_uid].append(result)
    failed = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    shared: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}  # one copy of equal headers, to save memory
    series = sorted((_series(records, shared) for records in groups.values()), key=_series_order)
    return Tree(tuple(series), (*unreadable, *failed), sum(result is None for result in results))


def _series(records: list[Record], shared: dict[tuple[tuple[str, str], ...], Mapping[str, str]]) -> Series:
    records = sorted(records, key=lambda record: (record.instance.sop_instance_uid, record.instance.path))
    first = records[0]
    instances: list[Instance] = []
    for one in (record.instance for record in records):
        one = replace(one, attributes=shared.setdefault(tuple(one.attributes.items()), one.attributes))
        last = instances[-1] if instances else None
        if last and last.sop_instance_uid == one.sop_instance_uid and _is_copy(last.path, one.path):
            instances[-1] = replace(last, copies=(*last.copies, one.path))
        else:
            instances.append(one)
    attributes = instances[0].attributes
    return Series(
        uid=first.series_uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        modality=attributes.get("Modality", ""),
        number=first.number,
        frame_of_reference=first.frame_of_reference,
        attributes=attributes,
        instances=tuple(instances),
        sop_class=first.instance.sop_class,
    )


def _is_copy(a: Path, b: Path) -> bool:
    try:
        return a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes()
    except OSError:
        return False


def _series_order(series: Series) -> tuple[str, str, bool, int, str]:
    return series.patient_id, series.study_uid, series.number is None, series.number or 0, series.uid
