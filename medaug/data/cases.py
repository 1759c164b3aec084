"""Cases in model space, preprocessed once and cached beside the run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE, foreground
from medaug.data.cache import add_owner, content_digests, locked, read_entry, refuse_changed, write_entry
from medaug.data.geometry import filled, in_box
from medaug.data.preprocessing import Placement, Preprocessing, body_box
from medaug.errors import UserError
from medaug.imaging.cases import HostImage, read_doubt, read_indices, read_modalities
from medaug.imaging.reading import read_header
from medaug.imaging.volume import shape_text
from medaug.isolation import Failure, isolated
from medaug.progress import track

log = logging.getLogger(__name__)

R = TypeVar("R")

CACHE_FORMAT = 4
"""Increase this whenever the code gives other voxels than before for the same files and preprocessing."""
_MANY = 32  # with fewer cases, starting worker processes costs more than it saves


@dataclass(frozen=True)
class ModelCase:
    """One scan in model space.

    Attributes:
        case: the case in the manifest.
        image: (M, X, Y, Z) float32 in [-1, 1].
        label: (X, Y, Z) uint8 class indices; None if the scan has no label.
        affine: affine of the scan's own grid, (4, 4) mm.
        dtype: voxel type on disk.
        placement: how to return to the scan's own grid.
        soft: what teachers predict for a scan without a label: probability of every class, (C, X, Y, Z) uint8 in 1/255.
        trust: how far `soft` is trusted, 0..1.
        weight: (X, Y, Z) uint8, weights of the label's voxels in a segmenter's loss, in 1/255; None: 1 everywhere.
        content: digest of the image in model space; "" if it was not cached.
    """

    case: Case
    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    placement: Placement
    content: str = ""
    soft: NDArray[np.uint8] | None = None
    trust: float = 1.0
    weight: NDArray[np.uint8] | None = None

    @property
    def slices(self) -> slice:
        """The slices along the third axis that lie in the scan; the others are padding."""
        return self.field_of_view[2]

    @property
    def field_of_view(self) -> tuple[slice, slice, slice]:
        """The box of the grid that lies in the scan; the rest is padding."""
        x, y, z = map(filled, self.placement.resampled, self.image.shape[1:])
        return x, y, z

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(X, Y, Z), true in `field_of_view`."""
        return in_box(self.field_of_view, self.image.shape[1:])


def read_case(manifest: Manifest, case: Case) -> tuple[HostImage, NDArray[np.uint8] | None]:
    """Read a case on its own grid: the image, and the class indices (X, Y, Z) or None.

    Raises:
        UserError: a file is missing or unreadable, holds NaN, disagrees in shape or geometry with the case's other
            files, or its label holds a value that the schema does not name.
    """
    host = read_modalities(manifest, case)
    return host, read_indices(manifest, case, host.grid)


def load_cases(
    manifest: Manifest, cases: Iterable[Case], preprocessing: Preprocessing, cache: Path, memory: bool = False
) -> list[ModelCase]:
    """Preprocess cases into model space, or load them from `cache`.

    The key of an entry is made from the content of the case's files, the label schema, the whole preprocessing and
    `CACHE_FORMAT`, so neither a changed file or option nor a killed run can give a wrong entry. An entry that was
    changed after it was written is refused. Several processes may share one folder: each preprocesses cases that no
    other process is working on, then waits for the rest.

    Args:
        manifest: the cohort.
        cases: cases of the cohort.
        preprocessing: the fitted preprocessing.
        cache: folder of the entries, created if absent; it may be deleted whenever no process uses it.
        memory: keep the arrays in memory; otherwise memory-map them. The values are the same.

    Raises:
        UserError: as for `read_case`; the cache cannot be written, or another program wrote into it.
    """
    cases = list(cases)
    files = {case.name: [*manifest.image_paths(case), manifest.label_path(case)] for case in cases}
    digests = content_digests((path for paths in files.values() for path in paths if path is not None), cache)

    def stem_of(case: Case) -> Path:
        contents = [None if path is None else digests[path] for path in files[case.name]]
        schema = replace(manifest.schema, regions=()).to_mapping()  # regions change what is scored, not what is stored
        identity = [CACHE_FORMAT, contents, len(manifest.modalities), schema, preprocessing.to_dict()]
        return cache / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]

    stems = {case.name: stem_of(case) for case in cases}
    missing = [case for case in cases if read_entry(stems[case.name], memory=False) is None]
    for wait in (False, True):
        prepare = partial(_prepare, manifest, preprocessing, stems, wait)
        busy = []
        for case, (done, warning) in _each(prepare, manifest, missing, "waiting" if wait else "preprocessing"):
            if not done:
                busy.append(case)
            if warning:
                log.warning("%s: %s", case.name, warning)
        missing = busy
    contents = refuse_changed(stems, cache)
    return [replace(_restore(case, stems[case.name], memory), content=contents[case.name]) for case in cases]


def without_doubt(
    manifest: Manifest, cases: Sequence[ModelCase], preprocessing: Preprocessing, weight: float = 0.0
) -> list[ModelCase]:
    """Cases whose labels count less where their confidence maps doubt them; cases without a map are left as they are.

    Args:
        manifest: the manifest that lists the cases.
        cases: the cases in model space.
        preprocessing: the preprocessing that defines the model space.
        weight: weight of doubted voxels, 0..1; with 0 they are ignored.

    Raises:
        UserError: as for `read_doubt`.
    """
    found = []
    for case in cases:
        doubt = None
        if case.case.confidence is not None and case.label is not None:
            doubt = read_doubt(manifest, case.case, read_header(manifest.image_paths(case.case)[0]))
        if doubt is None or case.label is None:
            found.append(case)
            continue
        doubted = preprocessing.apply_label(doubt, case.placement) == 1
        if weight:
            found.append(replace(case, weight=np.where(doubted, round(255 * weight), 255).astype(np.uint8)))
        else:
            found.append(replace(case, label=np.where(doubted, np.uint8(IGNORE), case.label)))
    return found


def read_grids(
    manifest: Manifest, cases: Sequence[Case], crop: str = "none"
) -> list[tuple[Sequence[int], NDArray[np.float64]]]:
    """Read the spatial shape and affine (mm) of each case from its header.

    Args:
        manifest: the cohort.
        cases: cases of the cohort.
        crop: "body" gives the shape after the crop to the body, which needs the voxels too.

    Raises:
        UserError: a file is missing or unreadable.
    """
    if crop == "body":
        return [grid for _, grid in _each(partial(_body_grid, manifest), manifest, cases, "finding the bodies")]
    headers = [read_header(manifest.image_paths(case)[0]) for case in track(cases, "reading headers")]
    return [(header.shape, header.affine) for header in headers]


def _body_grid(manifest: Manifest, case: Case) -> tuple[Sequence[int], NDArray[np.float64]]:
    host = read_modalities(manifest, case)
    return [stop - start for start, stop in body_box(host.array)], host.affine


def _prepare(
    manifest: Manifest, preprocessing: Preprocessing, stems: dict[str, Path], wait: bool, case: Case
) -> tuple[bool, str]:
    """Write an entry unless it exists; returns whether it exists now, and a warning ("": none)."""
    stem = stems[case.name]
    with locked(stem, wait) as held:
        if not held or read_entry(stem, memory=False) is not None:
            return held, ""
        host, label = read_case(manifest, case)
        image, placement = preprocessing.apply_image(host.array, host.affine)
        placed = None if label is None else preprocessing.apply_label(label, placement)
        about = {
            "affine": host.affine.tolist(),
            "dtype": host.dtype.name,
            "placement": placement.to_dict(),
            "owners": [_owner(case)],
        }
        write_entry(stem, image, placed, about)
    lost = label is not None and placed is not None and foreground(label).any() and not foreground(placed).any()
    grid = shape_text(preprocessing.shape)
    return (
        True,
        f"no label is left: it lies outside the model's grid {grid}, or is smaller than a voxel" if lost else "",
    )


def _each(
    function: Callable[[Case], R], manifest: Manifest, cases: Sequence[Case], description: str
) -> Iterator[tuple[Case, R]]:
    """Apply a function to every case, in worker processes if there are many; raises what the function raises."""
    results: Iterable[R | Failure]
    if len(cases) < _MANY:
        results = map(function, track(cases, description))
    else:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that torchrun started on this machine
        workers = 0 if ranks == 1 else max(1, (os.cpu_count() or 1) // ranks)
        results = isolated(function, cases, description, workers)
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, Failure):
            raise UserError(result.reason, "check the file, or leave the case out", path=manifest.image_paths(case)[0])
        yield case, result


def _restore(case: Case, stem: Path, memory: bool) -> ModelCase:
    entry = read_entry(stem, memory)
    if entry is None:
        raise UserError("cannot be read back", "check this folder's disk and run the same command again", path=stem)
    image, label, about = entry
    if _owner(case) not in about["owners"]:
        add_owner(stem, _owner(case))
    return ModelCase(
        case=case,
        image=image,
        label=label,
        affine=np.array(about["affine"]),
        dtype=np.dtype(about["dtype"]),
        placement=Placement.from_dict(about["placement"]),
    )


def _owner(case: Case) -> dict[str, str]:
    return {"case": case.name, "subject": case.subject}
