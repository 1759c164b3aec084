"""The files of one case, each read once: what is wrong with them, and the facts that the cohort is judged by."""

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

_SIDE = 128  # larger scans are thinned to between this and twice this, where not every voxel is needed
_FEWEST_SLICES = 8  # fewer do not show who it is
_FEWEST_VALUES = 64  # distinct ones; below, two scans may hold equally many of each by chance


@dataclass(frozen=True)
class Scan:
    """One volume of a file; `array` (X, Y, Z) is None where only the header was read."""

    name: str
    header: Header
    array: NDArray[Any] | None = None


def examine(
    cohort: Manifest, voxels: bool, intensity: Intensity, crashing: Mapping[Path, str], case: Case
) -> tuple[list[Finding], CaseFacts]:
    """Read every file of a case and say what is wrong with it, however many of the files cannot be read.

    Args:
        cohort: for its root, modalities and schema; its cases are not looked at.
        voxels: read the voxels as well, not the headers alone.
        intensity: the configured normalisation.
        crashing: files that no reader survives, not to be read again, and how it died.
        case: of the cohort.
    """
    findings: list[Finding] = []
    paths, label_path = cohort.image_paths(case), cohort.label_path(case)
    files = [_read(case.name, path, voxels, crashing, findings) for path in paths]
    label = _read(case.name, label_path, voxels, crashing, findings) if label_path else []
    places = [scan for file in files for scan in (file or [None])]  # type: ignore[list-item]
    first = next((scan for scan in places if scan), None)
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
                if file[0] is first or different:  # what is wrong with one grid is said once
                    findings += geometry.check_grid(case.name, path.name, file[0].header)
                doubts += geometry.check_doubts(case.name, path.name, file[0].header)
        if label:
            findings += geometry.compare_grids(case.name, label[0].name, label[0].header, first.name, grid)
            doubts += geometry.check_doubts(case.name, label[0].name, label[0].header)
        # Once per case: the files of a case come from one tool, and what is wrong with a grid has been said.
        for doubt in doubts:
            if all(finding.code != doubt.code for finding in findings):
                findings.append(doubt)
    if not voxels:
        return findings, facts
    modalities = cohort.modalities if len(places) == len(cohort.modalities) else ()
    volumes, body = _look_at_images(case.name, places, modalities, intensity, findings)
    if modalities:
        facts = replace(facts, volumes=volumes)
    absurd = any(finding.code == "absurd-spacing" for finding in findings)  # then millimetres mean nothing
    if volumes[0] and first and first.array is not None and min(first.array.shape) >= _FEWEST_SLICES and not absurd:
        thinning = _thinning(first.array.shape)
        affine = first.header.affine @ np.diag([*(axis.step for axis in thinning), 1.0])
        facts = replace(facts, signature=signature(first.array[thinning], affine))
    if label:
        facts = _look_at_label(case.name, label[0], cohort.schema, body, facts, findings)
    return findings, facts


def read_alone(path: Path) -> None:
    """Read a file and forget it, to see whether the process lives on."""
    with contextlib.suppress(UserError):
        read_volumes(path)


def _read(case: str, path: Path, voxels: bool, crashing: Mapping[Path, str], findings: list[Finding]) -> list[Scan]:
    """The volumes of a file; none, and one finding more, where it cannot be read."""
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
    return [Scan(name, header, array) for name, array in zip(names, arrays, strict=True)]


def _check_counts(
    case: Case, modalities: Sequence[str], files: Sequence[Sequence[Scan]], label: Sequence[Scan]
) -> Iterator[Finding]:
    """Find fewer or more volumes than modalities, and a label of several volumes."""
    # Of a file that cannot be read, nobody knows how many volumes it holds: then files are counted.
    num = sum(len(file) for file in files) if all(files) else len(files)
    if num != len(modalities) and (all(files) or num > 1):
        code = "missing-modality" if num < len(modalities) else "too-many-volumes"
        what = f"{num} volumes for {len(modalities)} modalities (in {', '.join(Path(f).name for f in case.images)})"
        yield Finding(case.name, "error", code, what, f"give one each of {', '.join(modalities)}")
    if len(label) > 1:
        what = f"the label holds {len(label)} volumes, not one ({label[0].name} and further)"
        yield Finding(case.name, "error", "too-many-volumes", what, "give a 3-D file")


def _look_at_images(
    case: str,
    places: Sequence[Scan | None],
    modalities: Sequence[str],
    intensity: Intensity,
    findings: list[Finding],
) -> tuple[tuple[VolumeFacts | None, ...], NDArray[np.bool_] | None]:
    """Judge the values of a case's volumes (None: unread; `modalities` is empty where nobody knows which is which).

    Returns:
        The facts of each, None where it is unread or its values are no use; and the thinned body of the first.
    """
    body = None
    volumes: list[VolumeFacts | None] = []
    for place, scan in enumerate(places):
        volumes.append(None)
        if scan is None or scan.array is None:
            continue
        wrong = list(intensities.check_values(case, scan.name, scan.array))
        findings += wrong
        if wrong:
            continue
        thin = scan.array[_thinning(scan.array.shape)].astype(np.float32)
        if modalities and intensity.method == "window" and intensity.window is not None:
            findings += intensities.check_window(case, scan.name, modalities[place], thin, intensity.window)
        if body is None:
            body = body_mask(thin)
        own_body = body if body.shape == thin.shape else body_mask(thin)
        values = scan.array.astype(np.float32)  # files may differ in the type they store
        values += 0  # -0 becomes 0
        content = _content_hash(values, scan.header.affine)
        profile = intensities.profile(thin, own_body, intensity)
        volumes[place] = VolumeFacts(content, _values_hash(values), profile)
    return tuple(volumes), body


def _look_at_label(
    case: str,
    label: Scan,
    schema: LabelSchema,
    body: NDArray[np.bool_] | None,
    facts: CaseFacts,
    findings: list[Finding],
) -> CaseFacts:
    """Judge the values of a label and where they lie; returns the facts with those of the label."""
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
    """The same for one volume stored along other axes."""
    oriented = np.asfortranarray(apply_orientation(values, io_orientation(affine)))  # as NIfTI lies in memory
    digest = hashlib.blake2b(repr(oriented.shape).encode(), digest_size=16)
    digest.update(oriented.T.data)
    return digest.hexdigest()


def _values_hash(values: NDArray[np.float32]) -> str:
    """The same for the same values in another order; `values` are put in order."""
    ordered = values.ravel(order="K")
    ordered.sort()
    if np.count_nonzero(ordered[1:] != ordered[:-1]) < _FEWEST_VALUES:
        return ""
    return hashlib.blake2b(ordered.data, digest_size=16).hexdigest()
