"""Problems of a cohort as a whole: in the manifest, in the numbers of cases, and from comparing cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import IMAGE_COUNT, Case, Manifest
from medaug.imaging.intensity import Intensity
from medaug.imaging.volume import distinct_sizes, shape_text
from medaug.preflight.copies import copy_finding
from medaug.preflight.facts import CaseFacts
from medaug.preflight.intensities import find_outliers
from medaug.preflight.twins import likely_same_subject

_SPACING_RATIO = 1.05
_SHAPE_RATIO = 3.0


@dataclass(frozen=True)
class Expectations:
    """What the cohort is meant for.

    Attributes:
        intensity: the normalisation of the scans; they are compared after it.
        subjects_named: whether the user named the subjects. If not, and case names do not show them either, each case
            is its own subject; two cases that are likely one person are then an error, because the split may separate
            them.
        labelled: number of training subjects that will keep their labels (`data.labelled`); None: all with a label.
        min_train_subjects: fewer training subjects are an error.
        min_train_scans: with fewer training scans, a generator is likely to memorise them.
        min_test_subjects: with fewer labelled test subjects, the benchmark gives no verdict.
    """

    intensity: Intensity = field(default_factory=Intensity)
    subjects_named: bool = True
    labelled: int | None = None
    min_train_subjects: int = 3
    min_train_scans: int = 20
    min_test_subjects: int = 6


def check_manifest(manifest: Manifest, expected: Expectations) -> Iterator[Finding]:
    """Find problems that show without opening files: `Manifest.problems`, shared files, missing labels, few cases."""
    for problem in manifest.problems():
        if problem.code != IMAGE_COUNT:  # reported with the files of the case
            yield Finding.from_error(manifest.name, problem.code, problem)
    users: dict[str, list[str]] = {}
    for case in manifest.cases:
        for file in {*case.images, *([case.label] if case.label else [])}:
            users.setdefault(file, []).append(case.name)
        for file, count in Counter(case.images).items():
            if count > 1:
                what = f"{file} is listed for {count} modalities"
                yield Finding(case.name, "error", "same-file", what, "give each modality its own file")
    for file, names in users.items():
        for name in names[1:]:
            if name != names[0]:
                what = f"{file} is also a file of {names[0]}"
                yield Finding(name, "error", "same-file", what, "give each case its own files")
    unlabelled = [case.name for case in manifest.cases if case.label is None]
    if unlabelled:
        what = f"{len(unlabelled)} of {len(manifest.cases)} cases have no label (the first is {unlabelled[0]})"
        remedy = "add labels, or leave them as unlabelled scans"
        yield Finding(manifest.name, "warning", "missing-label", what, remedy)
    if any(case.split != "train" for case in manifest.cases):
        yield from _check_numbers(manifest, expected)
    labelled = {case.subject for case in manifest.split("train") if case.label is not None}
    if expected.labelled is not None and len(labelled) < expected.labelled:
        what = f"{len(labelled)} training subjects have a label, but data.labelled is {expected.labelled}"
        yield Finding(manifest.name, "error", "too-few-labelled", what, "add labels, or lower data.labelled")


def _check_numbers(manifest: Manifest, expected: Expectations) -> Iterator[Finding]:
    train, scans = len(manifest.subjects("train")), len(manifest.split("train"))
    test = len({case.subject for case in manifest.split("test") if case.label is not None})
    if train < expected.min_train_subjects:
        what = f"{train} training subjects, but at least {expected.min_train_subjects} are needed"
        remedy = "add scans, or lower val_fraction and test_fraction"
        yield Finding(manifest.name, "error", "too-few-training-subjects", what, remedy)
    elif scans < expected.min_train_scans:
        what = f"{scans} training scans: below {expected.min_train_scans} a generator is likely to memorise them"
        yield Finding(manifest.name, "warning", "few-training-scans", what, "add scans; unlabelled ones help as well")
    if test < expected.min_test_subjects:
        what = f"{test} labelled test subjects: below {expected.min_test_subjects} the benchmark gives no verdict"
        yield Finding(manifest.name, "warning", "few-test-subjects", what, "add labelled subjects to the test split")


def compare_cases(
    manifest: Manifest, facts: Sequence[CaseFacts], expected: Expectations | None = None
) -> Iterator[Finding]:
    """Find problems that only show when cases are compared.

    Args:
        manifest: the cohort, with N cases.
        facts: facts of the N cases, in order; what could not be read is left out of the comparisons.
        expected: what the cohort is meant for.
    """
    yield from _check_geometry(manifest.name, facts)
    yield from _check_classes(manifest, facts)
    findings, copies = _find_copies(manifest, facts)
    yield from findings
    names = [case.name for case in manifest.cases]
    yield from find_outliers(names, manifest.modalities, [_profiles(fact) for fact in facts])
    with_signature = [
        (case, fact.signature)
        for index, (case, fact) in enumerate(zip(manifest.cases, facts, strict=True))
        if fact.signature is not None and index not in copies
    ]
    yield from likely_same_subject(
        [case.name for case, _ in with_signature],
        [case.subject for case, _ in with_signature],
        [signature for _, signature in with_signature],
        "warning" if expected is None or subjects_named(manifest, expected) else "error",
    )


def subjects_named(manifest: Manifest, expected: Expectations) -> bool:
    """Whether the user named the subjects, or the names of the cases show them, as in BraTS 2023."""
    return expected.subjects_named or any(case.subject != case.name for case in manifest.cases)


def _check_geometry(name: str, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Report voxel sizes, shapes and orientations that vary between cases."""
    spacings = np.array([fact.spacing for fact in facts if fact.spacing]).reshape(-1, 3)
    shapes = np.array([fact.shape for fact in facts if fact.shape]).reshape(-1, 3)
    axes = Counter(fact.orientation for fact in facts if fact.orientation)
    if not len(spacings):
        return
    low, high = spacings.min(0), spacings.max(0)
    if np.any(high > _SPACING_RATIO * low):
        smallest, largest = distinct_sizes(low, high)
        what = f"voxel sizes range from {smallest} to {largest} mm"
        remedy = "nothing to do with data.resample=auto; data.spacing chooses another size"
        yield Finding(name, "note", "spacing-varies", what, remedy)
    if np.any(shapes.max(0) > _SHAPE_RATIO * shapes.min(0)):
        what = f"shapes go from {shape_text(shapes.min(0))} to {shape_text(shapes.max(0))} voxels"
        remedy = (
            "make sure that all show the same part of the body; data.crop=body or data.shape limits the model's grid"
        )
        yield Finding(name, "note", "shape-varies", what, remedy)
    if len(axes) > 1:
        what = f"orientations vary ({', '.join(f'{count} {code}' for code, count in axes.most_common())})"
        yield Finding(name, "note", "orientation-varies", what, "nothing to do: scans are turned to RAS for the model")


def _check_classes(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find classes that occur in no label, or in none for training, and report those that occur only in some."""
    pairs = zip(manifest.cases, facts, strict=True)
    found = [(case.split, fact.classes) for case, fact in pairs if fact.classes is not None]
    for name in manifest.schema.foreground if found else ():
        splits = Counter(split for split, classes in found if name in classes)
        if not splits:
            what = f"class {name} is in no label"
            remedy = "remove it from the labels, or make sure that its value is right"
            yield Finding(manifest.name, "warning", "class-never-occurs", what, remedy)
        elif not splits["train"]:
            what = f"class {name} is in {splits.total()} labels of {' and '.join(sorted(splits))}, in none for training"
            yield Finding(manifest.name, "warning", "class-not-in-training", what, "split differently (split_seed)")
        elif splits.total() < len(found):
            what = f"class {name} is in {splits.total()} of {len(found)} labels"
            yield Finding(manifest.name, "note", "class-in-some", what, "nothing to do if not every subject has it")


def _find_copies(manifest: Manifest, facts: Sequence[CaseFacts]) -> tuple[list[Finding], dict[int, int]]:
    """Find volumes and labels that occur twice, also mirrored or rotated.

    Returns:
        The findings, and a mapping from each case that has the voxels of an earlier case to that case, by index.
    """
    findings = []
    copies: dict[int, int] = {}
    first_use: dict[str, tuple[int, int]] = {}  # hash -> (case, modality), by index
    labels: dict[str, int] = {}
    for index, (case, fact) in enumerate(zip(manifest.cases, facts, strict=True)):
        for m, volume in enumerate(fact.volumes):
            if volume is None:
                continue
            exact = first_use.get(volume.content)
            original, other_m = exact or first_use.get(volume.values) or (None, 0)
            for key in filter(None, (volume.content, volume.values)):
                first_use.setdefault(key, (index, m))
            if original is None or original == copies.get(index):
                continue
            other = manifest.cases[original]
            if original != index:
                copies[index] = original
            if (original != index or len(case.images) > 1) and _file(case, m) == _file(other, other_m):
                continue  # one file listed twice, which check_manifest reports
            modality, other_modality = manifest.modalities[m], manifest.modalities[other_m]
            code, how = ("same-content", "") if exact else ("mirrored-content", ", mirrored or rotated")
            if original == index:
                what = f"{modality} holds the same voxels as {other_modality}{how}"
                findings.append(Finding(case.name, "warning", code, what, f"give the right file for {modality}"))
                continue
            what = f"{modality} holds the same voxels as {other_modality} of {other.name}{how}"
            findings.append(copy_finding(case, other, code, what))
        if fact.label_content:
            labelled = labels.setdefault(fact.label_content, index)
            if labelled not in {index, copies.get(index)} and case.label != manifest.cases[labelled].label:
                what = f"its label is identical to that of {manifest.cases[labelled].name}, but its image is not"
                remedy = "make sure that each label belongs to its image"
                findings.append(Finding(case.name, "warning", "same-label", what, remedy))
    return findings, copies


def _profiles(fact: CaseFacts) -> list[NDArray[np.float32] | None]:
    """Return the profiles of a case; None for a modality that is a copy of another, which is reported elsewhere."""
    contents = [volume.content if volume else None for volume in fact.volumes]
    return [v.profile if v and v.content not in contents[:m] else None for m, v in enumerate(fact.volumes)]


def _file(case: Case, modality: int) -> str:
    """Return the file that holds the volume of one modality."""
    return case.images[modality if len(case.images) > 1 else 0]
