"""Reads each file of one case once: finds its problems, and the facts that checks of the whole cohort need."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema, foreground
from medaug.errors import UserError
from medaug.imaging.body import body_mask
from medaug.imaging.intensity import Intensity
from medaug.imaging.reading import read_header, read_volumes
from medaug.imaging.volume import Header
from medaug.preflight import geometry, intensities, labels
from medaug.preflight.facts import CaseFacts, VolumeFacts
from medaug.preflight.twins import signature

_SIDE = 128  # checks that do not need every voxel use every n-th, so that sides have 128 to 255
_FEWEST_SLICES = 8  # fewer are not enough to recognise a subject
_FEWEST_VALUES = 64  # with fewer distinct values, two scans may have the same histogram by chance


@dataclass(frozen=True)
class FileVolume:
    """One volume of a file; `array` (X, Y, Z) is None if only the header was read."""

    name: str
    header: Header
    array: NDArray[Any] | None = None


def examine(
    cohort: Manifest, voxels: bool, intensity: Intensity, crashing: Mapping[Path, str], case: Case
) -> tuple[list[Finding], CaseFacts]:
    """Read every file of a case and find its problems, even if some of the files cannot be read.

    Args:
        cohort: gives root, modalities and schema; its cases are not used.
        voxels: read the voxels too, not only the headers.
        intensity: the configured normalisation.
        crashing: files that crash the reader, with the reason; they are not read again.
        case: the case to examine.
    """
    findings: list[Finding] = []
    paths, label_path = cohort.image_paths(case), cohort.label_path(case)
    files = [_read(case.name, path, voxels, crashing, findings) for path in paths]
    label = _read(case.name, label_path, voxels, crashing, findings) if label_path else []
    scans = [scan for file in files for scan in (file or [None])]  # type: ignore[list-item]
    first = next((scan for scan in scans if scan), None)
    findings += _check_counts(case, cohort.modalities, files, label)
    facts = CaseFacts()
    doubts: list[Finding] = []
    if first:
        grid = first.header
        facts = replace(facts, shape=grid.shape, spacing=grid.spacing, orientation=geometry.orientation(grid))
        for path, file in zip(paths, files, strict=True):
            if file:
                different = list(geometry.compare_grids(case.name, path.name, file[0].header, first.name, grid))
                findings += different
                if file[0] is first or different:  # a problem of a shared grid is reported once
                    findings += geometry.check_grid(case.name, path.name, file[0].header)
                doubts += geometry.check_doubts(case.name, path.name, file[0].header)
        if label:
            findings += geometry.compare_grids(case.name, label[0].name, label[0].header, first.name, grid)
            doubts += geometry.check_doubts(case.name, label[0].name, label[0].header)
        # Report each kind once per case: one tool wrote all its files, and they share problems of the grid.
        for doubt in doubts:
            if all(finding.code != doubt.code for finding in findings):
                findings.append(doubt)
    if not voxels:
        return findings, facts
    modalities = cohort.modalities if len(scans) == len(cohort.modalities) else ()
    volumes, body = _check_images(case.name, scans, modalities, intensity, findings)
    if modalities:
        facts = replace(facts, volumes=volumes)
    absurd = any(finding.code == "absurd-spacing" for finding in findings)  # distances would be meaningless
    if volumes[0] and first and first.array is not None and min(first.array.shape) >= _FEWEST_SLICES and not absurd:
        thinning = _thinning(first.array.shape)
        affine = first.header.affine @ np.diag([*(axis.step for axis in thinning), 1.0])
        facts = replace(facts, signature=signature(first.array[thinning], affine))
    if label:
        facts = _check_label(case.name, label[0], cohort.schema, body, facts, findings)
    return findings, facts


def try_to_read(path: Path) -> None:
    """Read a file and discard it; run in a worker process to see whether the reader crashes."""
    with contextlib.suppress(UserError):
        read_volumes(path)


def _read(
    case: str, path: Path, voxels: bool, crashing: Mapping[Path, str], findings: list[Finding]
) -> list[FileVolume]:
    """Return the volumes of a file; if it cannot be read, return none and add a finding."""
    if path in crashing:
        what, remedy = f"cannot be read: {crashing[path]}", "copy or convert it again, or leave the case out"
        findings.append(Finding(case, "error", "reader-crash", what, remedy, str(path)))
        return []
    try:
        if voxels:
            read = read_volumes(path)
            arrays: list[NDArray[Any] | None] = [volume.array for volume in read]
            header = read[0].header
        else:
            header = read_header(path)
            arrays = [None] * header.num_volumes
    except UserError as error:
        findings.append(Finding.from_error(case, error.code or "damaged", error))
        return []
    names = [path.name] if len(arrays) == 1 else [f"{path.name} volume {index}" for index in range(len(arrays))]
    return [FileVolume(name, header, array) for name, array in zip(names, arrays, strict=True)]


def _check_counts(
    case: Case, modalities: Sequence[str], files: Sequence[Sequence[FileVolume]], label: Sequence[FileVolume]
) -> Iterator[Finding]:
    """Find fewer or more volumes than modalities, and labels of several volumes."""
    # If a file cannot be read, its number of volumes is unknown, so count files instead.
    num = sum(len(file) for file in files) if all(files) else len(files)
    if num != len(modalities) and (all(files) or num > 1):
        code = "missing-modality" if num < len(modalities) else "too-many-volumes"
        what = f"{num} volumes for {len(modalities)} modalities (in {', '.join(Path(f).name for f in case.images)})"
        yield Finding(case.name, "error", code, what, f"give one each of {', '.join(modalities)}")
    if len(label) > 1:
        what = f"the label holds {len(label)} volumes, not one ({label[0].name} and others)"
        yield Finding(case.name, "error", "too-many-volumes", what, "give a 3-D file")


def _check_images(
    case: str,
    scans: Sequence[FileVolume | None],
    modalities: Sequence[str],
    intensity: Intensity,
    findings: list[Finding],
) -> tuple[tuple[VolumeFacts | None, ...], NDArray[np.bool_] | None]:
    """Check the values of a case's volumes.

    Args:
        case: name of the case.
        scans: its volumes; None: unread.
        modalities: name of each volume's modality; empty if they cannot be assigned.
        intensity: the configured normalisation.
        findings: receives the findings.

    Returns:
        The facts of each volume, None if it is unread or not usable; and the body mask of the first, thinned.
    """
    body = None
    volumes: list[VolumeFacts | None] = []
    for index, scan in enumerate(scans):
        volumes.append(None)
        if scan is None or scan.array is None:
            continue
        wrong = list(intensities.check_values(case, scan.name, scan.array))
        findings += wrong
        if wrong:
            continue
        thin = scan.array[_thinning(scan.array.shape)].astype(np.float32)
        if modalities and intensity.method == "window" and intensity.window is not None:
            findings += intensities.check_window(case, scan.name, modalities[index], thin, intensity.window)
        if body is None:
            body = body_mask(thin)
        own_body = body if body.shape == thin.shape else body_mask(thin)
        values = scan.array.astype(np.float32)  # copies may be stored in different types
        values += 0  # -0 becomes 0
        content = _content_hash(values, scan.header.affine)
        profile = intensities.profile(thin, own_body, intensity)
        volumes[index] = VolumeFacts(content, _values_hash(values), profile)
    return tuple(volumes), body


def _check_label(
    case: str,
    label: FileVolume,
    schema: LabelSchema,
    body: NDArray[np.bool_] | None,
    facts: CaseFacts,
    findings: list[Finding],
) -> CaseFacts:
    """Check the values of a label and their position; return the facts with those of the label added."""
    assert label.array is not None
    found, indices = labels.class_indices(case, label.name, label.array, schema)
    findings += found
    if indices is None:
        return facts
    if body is not None and label.header.shape == facts.shape:
        findings += labels.check_place(case, label.name, indices, body, _thinning(indices.shape))
    if foreground(indices).any():
        facts = replace(facts, label_content=_content_hash(indices, label.header.affine))
    return replace(facts, classes=labels.classes(indices, schema))


def _thinning(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(None, None, max(1, side // _SIDE)) for side in shape)


def _content_hash(values: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """Return a hash that does not depend on the order and direction in which the axes are stored."""
    oriented = np.asfortranarray(apply_orientation(values, io_orientation(affine)))  # NIfTI's memory order
    digest = hashlib.blake2b(repr(oriented.shape).encode(), digest_size=16)
    digest.update(oriented.T.data)
    return digest.hexdigest()


def _values_hash(values: NDArray[np.float32]) -> str:
    """Return a hash that does not depend on the order of the values; sorts `values` in place."""
    ordered = values.ravel(order="K")
    ordered.sort()
    if np.count_nonzero(ordered[1:] != ordered[:-1]) < _FEWEST_VALUES:
        return ""
    return hashlib.blake2b(ordered.data, digest_size=16).hexdigest()
