"""What is wrong with a cohort, all of it in one pass, before an hour of training is spent on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging.nifti import Volume, grid_difference, is_finite, read_label, read_volumes
from medaug.progress import track

_MAX_WORKERS = 4  # each holds one case in memory; reading is bound by gzip, which releases the interpreter


@dataclass(frozen=True)
class Finding:
    """One fault: the case (or the cohort's name), how bad, what it is and what to do about it."""

    case: str
    severity: Literal["error", "warning"]
    what: str
    remedy: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.severity}: {self.case}: {self.what}; {self.remedy}"


def check(manifest: Manifest) -> list[Finding]:
    """Look at a manifest and at every voxel of its files; returns findings in the order of the cases.

    Args:
        manifest: the cohort; it need not be valid.
    """
    findings = check_cohort(manifest)
    with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda case: check_case(manifest, case), manifest.cases)
        for found in track(results, "checking", total=len(manifest.cases)):
            findings += found
    return findings


def check_cohort(manifest: Manifest) -> list[Finding]:
    """Find what needs no file: duplicate names, a subject in two splits, labels that only some cases have."""
    findings = [_finding(manifest.name, problem) for problem in manifest.problems()]
    unlabelled = [case.name for case in manifest.cases if case.label is None]
    if 0 < len(unlabelled) < len(manifest.cases):
        what = f"{len(unlabelled)} of {len(manifest.cases)} cases have no label (the first is {unlabelled[0]})"
        findings.append(Finding(manifest.name, "warning", what, "add labels, or mean them to be unlabelled scans"))
    return findings


def check_case(manifest: Manifest, case: Case) -> list[Finding]:
    """Find what is wrong with the files of one case."""
    findings, images = check_images_readable(manifest, case)
    complete = not findings
    if complete:
        findings += check_modalities(manifest, case, images)
    findings += check_intensities(case, images)
    path = manifest.label_path(case)
    if path is None:
        return findings
    try:
        label = read_label(path)
    except UserError as error:
        return [*findings, _finding(case.name, str(error))]
    if images:
        findings += check_label_grid(case, images[0][1], path, label)
    return [*findings, *check_label_values(case, path, label, manifest.schema)]


def check_images_readable(manifest: Manifest, case: Case) -> tuple[list[Finding], list[tuple[str, Volume]]]:
    """Find image files that are missing or damaged; returns the others as (name, volume) beside."""
    findings: list[Finding] = []
    volumes: list[tuple[str, Volume]] = []
    for path in manifest.image_paths(case):
        try:
            read = read_volumes(path)
        except UserError as error:
            findings.append(_finding(case.name, str(error)))
            continue
        names = [path.name] if len(read) == 1 else [f"{path.name} volume {i}" for i in range(len(read))]
        volumes += zip(names, read, strict=True)
    return findings, volumes


def check_modalities(manifest: Manifest, case: Case, images: Sequence[tuple[str, Volume]]) -> Iterator[Finding]:
    """Find a wrong number of modalities, and modalities that do not share one grid."""
    if len(images) != len(manifest.modalities):
        what = f"{len(images)} volumes for {len(manifest.modalities)} modalities"
        yield Finding(case.name, "error", what, f"give one each of {', '.join(manifest.modalities)}")
    for name, volume in images[1:]:
        if difference := grid_difference(images[0][1], volume):
            what = f"{name} {difference} of {images[0][0]}"
            yield Finding(case.name, "error", what, "resample the modalities to one grid")


def check_intensities(case: Case, images: Sequence[tuple[str, Volume]]) -> Iterator[Finding]:
    """Find NaN or infinite values, and volumes that hold one value only."""
    for name, volume in images:
        if not is_finite(volume.array):
            what = f"{name} holds NaN or infinite values"
            yield Finding(case.name, "error", what, "replace them, or leave the case out")
        elif volume.array.min() == volume.array.max():
            what = f"{name} is constant (every voxel is {volume.array.flat[0]:g})"
            yield Finding(case.name, "error", what, "export the image again, or leave the case out")


def check_label_grid(case: Case, image: Volume, path: Path, label: Volume) -> Iterator[Finding]:
    """Find a label that does not lie on the grid of its image."""
    if difference := grid_difference(image, label):
        what = f"label {path.name} {difference} of its image"
        yield Finding(case.name, "error", what, "resample the label to the image, nearest neighbour")


def check_label_values(case: Case, path: Path, label: Volume, schema: LabelSchema) -> Iterator[Finding]:
    """Find values outside the schema, values that are not whole numbers, and labels without foreground."""
    try:
        indices = schema.to_indices(label.array, str(path))
    except UserError as error:
        yield _finding(case.name, str(error))
        return
    if not indices.any():
        what = f"label {path.name} is background only"
        yield Finding(case.name, "warning", what, "make sure that there is nothing to label")


def _finding(case: str, problem: str) -> Finding:
    what, _, remedy = problem.rpartition("; ")
    return Finding(case, "error", what, remedy)
