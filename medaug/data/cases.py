"""Cases in model space, preprocessed once and kept beside the run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Case, Manifest
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.imaging.nifti import Volume, grid_difference, read_images, read_label, read_volumes
from medaug.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostImage:
    """An image as the scanner wrote it: (M, X, Y, Z) float32 in its own units, affine (4, 4) mm, type on disk."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class ModelCase:
    """One scan in model space.

    Attributes:
        case: where it comes from.
        image: (M, X, Y, Z) float32 in [-1, 1].
        label: (X, Y, Z) uint8 class indices; None where the scan has no label.
        affine: the host's, (4, 4) mm.
        dtype: of the host's voxels on disk.
        placement: the way back to the host's grid.
    """

    case: Case
    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    placement: Placement


def read_case(manifest: Manifest, case: Case) -> tuple[HostImage, NDArray[np.uint8] | None]:
    """Read a case on the host's grid: its image, and its class indices (X, Y, Z) or None.

    Raises:
        UserError: a file is missing or unreadable, holds NaN, disagrees in shape or geometry with the case's other
            files, or its label holds a value that the schema does not name.
    """
    paths = manifest.image_paths(case)
    image, affine, dtype = read_images(paths)
    if len(image) != len(manifest.modalities):
        raise UserError(
            f"{case.name}: {len(image)} image volume(s) where the manifest names {len(manifest.modalities)} "
            f"modalities ({', '.join(manifest.modalities)}); correct the manifest or the file"
        )
    host = HostImage(image, affine, dtype)
    path = manifest.label_path(case)
    if path is None:
        return host, None
    label = read_label(path)
    if difference := grid_difference(Volume(image[0], affine, dtype), label):
        raise UserError(f"{path}: the label {difference} of {paths[0].name}; resample it onto the image's grid")
    return host, manifest.schema.to_indices(label.array, str(path))


def load_cases(manifest: Manifest, cases: Iterable[Case], preprocessing: Preprocessing, cache: Path) -> list[ModelCase]:
    """Bring cases into model space, from `cache` where they are there already; images are memory-mapped.

    The cache is keyed by the files (path, size, time), the label schema and the whole preprocessing, and written
    atomically, so a killed run or a changed option cannot leave a wrong entry.
    """
    cases = list(cases)
    keys = {case.name: _key(manifest, case, preprocessing) for case in cases}
    missing = [case for case in cases if not (cache / f"{keys[case.name]}.json").exists()]
    for case in track(missing, "preprocessing"):
        _store(manifest, case, preprocessing, cache / keys[case.name])
    return [_restore(case, cache / keys[case.name]) for case in cases]


def read_grids(manifest: Manifest, cases: Sequence[Case]) -> list[tuple[Sequence[int], NDArray[np.float64]]]:
    """Spatial shape and affine (mm) of each case.

    Raises:
        UserError: a file is missing or is not readable NIfTI.
    """
    volumes = (read_volumes(manifest.image_paths(case)[0])[0] for case in track(cases, "reading grids"))
    return [(volume.array.shape, volume.affine) for volume in volumes]


def _key(manifest: Manifest, case: Case, preprocessing: Preprocessing) -> str:
    files = []
    label = manifest.label_path(case)
    for path in [*manifest.image_paths(case), *([label] if label else [])]:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; restore the file or correct the manifest") from error
        files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    identity = [files, label is not None, manifest.schema.to_mapping(), preprocessing.to_dict()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def _store(manifest: Manifest, case: Case, preprocessing: Preprocessing, stem: Path) -> None:
    host, label = read_case(manifest, case)
    small, placement = preprocessing.apply_image(host.array, host.affine)
    _save(stem.with_suffix(".image.npy"), small)
    if label is not None:
        placed = preprocessing.apply_label(label, host.affine)
        if label.any() and not placed.any():
            log.warning("%s: its label lies wholly outside the model's grid %s", case.name, preprocessing.shape)
        _save(stem.with_suffix(".label.npy"), placed)
    # Last, because it says that the entry is whole.
    with atomic_write(stem.with_suffix(".json")) as temporary:
        entry = {
            "affine": host.affine.tolist(),
            "dtype": host.dtype.name,
            "labelled": label is not None,
            "placement": asdict(placement),
        }
        temporary.write_text(json.dumps(entry))


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic_write(path) as temporary:
        np.save(temporary, array)


def _restore(case: Case, stem: Path) -> ModelCase:
    entry = json.loads(stem.with_suffix(".json").read_text())
    placement = entry["placement"]
    return ModelCase(
        case=case,
        image=np.load(stem.with_suffix(".image.npy"), mmap_mode="r"),
        label=np.load(stem.with_suffix(".label.npy"), mmap_mode="r") if entry["labelled"] else None,
        affine=np.array(entry["affine"]),
        dtype=np.dtype(entry["dtype"]),
        placement=Placement(
            shape=tuple(placement["shape"]),
            orientation=tuple((axis, flip) for axis, flip in placement["orientation"]),
            resampled=tuple(placement["resampled"]),
            low=tuple(placement["low"]),
            high=tuple(placement["high"]),
        ),
    )
