"""The headers of a DICOM tree: every file read without its pixels and grouped into series by UID.

Folders and file names mean nothing here. Grouping goes by PatientID, StudyInstanceUID and SeriesInstanceUID, order by
content, so that a renamed or moved file changes no result. Values may identify people: nothing here logs or warns.
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
        patient_id: PatientID, "" where it is missing.
        modality: Modality.
        number: SeriesNumber, None where it is missing.
        frame_of_reference: FrameOfReferenceUID, "" where it is missing.
        attributes: text of the header values that rules may match on, by keyword, several values joined by a
            backslash; those of the first instance.
        instances: sorted by SOPInstanceUID; files that are exact copies of one another are one.
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
        """The series in words that a message may use: they name nobody."""
        return "series without a number" if self.number is None else f"series {self.number}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its files, copies too."""
        return tuple(path for one in self.instances for path in one.paths)

    def keeping(self, instances: Sequence[Instance]) -> Series:
        """The series with these of its files alone."""
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
    """What lies below a folder.

    Attributes:
        series: sorted by patient, study, series number and UID.
        unreadable: (path, reason) of files that are, or are named as, DICOM and cannot be read.
        ignored: count of the files that are no DICOM.
    """

    series: tuple[Series, ...]
    unreadable: tuple[tuple[Path, str], ...]
    ignored: int


def scan_tree(root: str | os.PathLike[str], workers: int = 0) -> Tree:
    """Read the header of every DICOM file below a folder, in parallel, with a progress bar.

    Hidden files, macOS's `__MACOSX` and DICOMDIR are passed over. Links are followed, every folder once.

    Args:
        root: the folder; its files may lie in any nesting, with any name.
        workers: processes, as for `isolated`.

    Raises:
        UserError: root is no folder.
    """
    if not Path(root).is_dir():
        raise UserError(f"root={os.fspath(root)}: is no folder", "give the folder that holds the DICOM files")
    paths, unreadable = _files(Path(root))
    chunks = [tuple(paths[start : start + _FILES_PER_ITEM]) for start in range(0, len(paths), _FILES_PER_ITEM)]
    results: list[Record | str | None] = []
    for chunk, result in zip(
        chunks, isolated(read_headers, chunks, "DICOM headers", workers, memory=MEMORY), strict=True
    ):
        if not isinstance(result, Failure):
            results += result
            continue
        # One of them took the worker down: find out which.
        for alone in isolated(read_headers, [(path,) for path in chunk], "", workers, memory=MEMORY):
            results.append(alone.reason if isinstance(alone, Failure) else alone[0])
    return _tree(paths, results, unreadable)


def scan_here(root: str | os.PathLike[str]) -> Tree:
    """As `scan_tree` for one file or a small folder, in this process and in silence."""
    paths, unreadable = ([Path(root)], []) if Path(root).is_file() else _files(Path(root))
    return _tree(paths, read_headers(paths), unreadable)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one of those that macOS adds."""
    return name.startswith(".") or name == "__MACOSX"


def _files(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """All files below root, sorted, and the folders that cannot be listed."""
    found: list[Path] = []
    closed: list[tuple[Path, str]] = []
    seen = {os.path.realpath(root)}

    def note(error: OSError) -> None:
        closed.append((Path(error.filename), f"cannot be listed ({error.strerror})"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=note):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not is_passed_over(name) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [Path(folder, name) for name in files if not is_passed_over(name) and name.upper() != "DICOMDIR"]
    return sorted(found), closed


def _tree(
    paths: Sequence[Path], results: Sequence[Record | str | None], unreadable: Sequence[tuple[Path, str]]
) -> Tree:
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for result in results:
        if isinstance(result, Record):
            groups[result.patient_id, result.study_uid, result.series_uid].append(result)
    failed = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    shared: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}  # most files of a series say the same
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
