"""Faults that no case has alone: of the manifest, of its numbers, and of cases beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import IMAGE_COUNT, Case, Manifest
from medaug.imaging.intensity import Intensity
from medaug.imaging.volume import times, told_apart
from medaug.preflight.facts import CaseFacts
from medaug.preflight.intensities import find_outliers
from medaug.preflight.twins import likely_same_subject

_SPACING_RATIO = 1.05
_SHAPE_RATIO = 3.0


@dataclass(frozen=True)
class Expectations:
    """What the cohort is meant for.

    Attributes:
        intensity: the normalisation that the scans will go through, by which they are compared.
        subjects_named: somebody said who the subjects are. If not, and if the names of the cases do not say it either,
            each case is its own, and two cases that are likely one person are an error, for the split would tear them
            apart.
        labelled: training subjects that will keep their labels (`data.labelled`); None: all that have one.
        min_train_subjects: fewer are an error.
        min_train_scans: with fewer, a generator learns scans by heart.
        min_test_subjects: with fewer labelled ones, the benchmark gives no verdict.
    """

    intensity: Intensity = field(default_factory=Intensity)
    subjects_named: bool = True
    labelled: int | None = None
    min_train_subjects: int = 3
    min_train_scans: int = 20
    min_test_subjects: int = 6


def check_manifest(manifest: Manifest, expected: Expectations) -> Iterator[Finding]:
    """Find what needs no file: what `Manifest.problems` says, files used twice, missing labels, too small numbers."""
    for problem in manifest.problems():
        if problem.code != IMAGE_COUNT:  # reported with the files of the case
            yield Finding.from_error(manifest.name, problem.code, problem)
    users: dict[str, list[str]] = {}
    for case in manifest.cases:
        for file in {*case.images, *([case.label] if case.label else [])}:
            users.setdefault(file, []).append(case.name)
        for file, count in Counter(case.images).items():
            if count > 1:
                what = f"{file} stands for {count} modalities"
                yield Finding(case.name, "error", "same-file", what, "give each modality its own file")
    for file, names in users.items():
        for name in names[1:]:
            if name != names[0]:
                what = f"{file} is a file of {names[0]} too"
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
        what = f"{len(labelled)} training subjects have a label, data.labelled asks for {expected.labelled}"
        yield Finding(manifest.name, "error", "too-few-labelled", what, "add labels or set data.labelled lower")


def _check_numbers(manifest: Manifest, expected: Expectations) -> Iterator[Finding]:
    train, scans = len(manifest.subjects("train")), len(manifest.split("train"))
    test = len({case.subject for case in manifest.split("test") if case.label is not None})
    if train < expected.min_train_subjects:
        what = f"{train} training subjects, at least {expected.min_train_subjects} are needed"
        remedy = "add scans or set val_fraction and test_fraction lower"
        yield Finding(manifest.name, "error", "too-few-training-subjects", what, remedy)
    elif scans < expected.min_train_scans:
        what = f"{scans} training scans: below {expected.min_train_scans} a generator is likely to learn them by heart"
        yield Finding(manifest.name, "warning", "few-training-scans", what, "add scans; unlabelled ones help as well")
    if test < expected.min_test_subjects:
        what = f"{test} labelled test subjects: below {expected.min_test_subjects} the benchmark gives no verdict"
        yield Finding(manifest.name, "warning", "few-test-subjects", what, "put more labelled subjects there")


def compare_cases(
    manifest: Manifest, facts: Sequence[CaseFacts], expected: Expectations | None = None
) -> Iterator[Finding]:
    """Find what shows only in cases side by side.

    Args:
        manifest: of N cases.
        facts: of each, in their order; what could not be read is left out of the comparisons.
        expected: what the cohort is meant for.
    """
    yield from _check_geometry(manifest.name, facts)
    yield from _check_classes(manifest, facts)
    findings, copies = _find_copies(manifest, facts)
    yield from findings
    names = [case.name for case in manifest.cases]
    yield from find_outliers(names, manifest.modalities, [_profiles(fact) for fact in facts])
    signed = [
        (case, fact.signature)
        for index, (case, fact) in enumerate(zip(manifest.cases, facts, strict=True))
        if fact.signature is not None and index not in copies
    ]
    yield from likely_same_subject(
        [case.name for case, _ in signed],
        [case.subject for case, _ in signed],
        [signature for _, signature in signed],
        "warning" if expected is None or subjects_named(manifest, expected) else "error",
    )


def subjects_named(manifest: Manifest, expected: Expectations) -> bool:
    """Whether the user said who the subjects are, or the names of the cases do, as those of BraTS 2023."""
    return expected.subjects_named or any(case.subject != case.name for case in manifest.cases)


def _check_geometry(name: str, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Note voxel sizes, shapes and orientations that vary."""
    spacings = np.array([fact.spacing for fact in facts if fact.spacing]).reshape(-1, 3)
    shapes = np.array([fact.shape for fact in facts if fact.shape]).reshape(-1, 3)
    axes = Counter(fact.orientation for fact in facts if fact.orientation)
    if not len(spacings):
        return
    low, high = spacings.min(0), spacings.max(0)
    if np.any(high > _SPACING_RATIO * low):
        smallest, largest = told_apart(low, high)
        what = f"voxel sizes go from {smallest} to {largest} mm"
        remedy = "nothing to do with data.resample=auto; data.spacing chooses another size"
        yield Finding(name, "note", "spacing-varies", what, remedy)
    if np.any(shapes.max(0) > _SHAPE_RATIO * shapes.min(0)):
        what = f"shapes go from {times(shapes.min(0))} to {times(shapes.max(0))} voxels"
        remedy = (
            "make sure that all show the same part of the body; data.crop=body or data.shape bounds the model's grid"
        )
        yield Finding(name, "note", "shape-varies", what, remedy)
    if len(axes) > 1:
        what = f"orientations vary ({', '.join(f'{count} {code}' for code, count in axes.most_common())})"
        yield Finding(name, "note", "orientation-varies", what, "nothing to do: scans are turned to RAS for the model")


def _check_classes(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find classes that no label holds, or none to train on, and note those that only some hold."""
    pairs = zip(manifest.cases, facts, strict=True)
    found = [(case.split, fact.classes) for case, fact in pairs if fact.classes is not None]
    for name in manifest.schema.foreground if found else ():
        having = Counter(split for split, classes in found if name in classes)
        if not having:
            what = f"class {name} is in no label"
            remedy = "take it out of the labels, or make sure that the right values are meant"
            yield Finding(manifest.name, "warning", "class-never-occurs", what, remedy)
        elif not having["train"]:
            what = f"class {name} is in {having.total()} labels of {' and '.join(sorted(having))}, in none for training"
            yield Finding(manifest.name, "warning", "class-not-in-training", what, "split otherwise (split_seed)")
        elif having.total() < len(found):
            what = f"class {name} is in {having.total()} of {len(found)} labels"
            yield Finding(manifest.name, "note", "class-in-some", what, "nothing, if it does not occur in everybody")


def _find_copies(manifest: Manifest, facts: Sequence[CaseFacts]) -> tuple[list[Finding], dict[int, int]]:
    """Find volumes and labels that are there twice, also mirrored or turned.

    Returns:
        The findings, and for each case with the voxels of an earlier one (both by index) that one.
    """
    findings = []
    copies: dict[int, int] = {}
    seen: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    for index, (case, fact) in enumerate(zip(manifest.cases, facts, strict=True)):
        for place, volume in enumerate(fact.volumes):
            if volume is None:
                continue
            exact = seen.get(volume.content)
            original, there = exact or seen.get(volume.values) or (None, 0)
            for key in filter(None, (volume.content, volume.values)):
                seen.setdefault(key, (index, place))
            if original is None or original == copies.get(index):
                continue
            other = manifest.cases[original]
            if original != index:
                copies[index] = original
            if (original != index or len(case.images) > 1) and _file(case, place) == _file(other, there):
                continue  # one file named twice, which check_manifest says
            here, its = manifest.modalities[place], manifest.modalities[there]
            code, how = ("same-content", "") if exact else ("mirrored-content", ", mirrored or turned")
            if original == index:
                what = f"{here} holds the same voxels as {its}{how}"
                findings.append(Finding(case.name, "warning", code, what, f"give the right file for {here}"))
                continue
            what = f"{here} holds the same voxels as {its} of {other.name}{how}"
            if case.subject == other.subject:
                findings.append(Finding(case.name, "warning", code, what, "leave one of the two out"))
            else:  # a split by subject leaks, now or when it is made
                what += ", another subject" + ("" if case.split == other.split else f" in the split {other.split}")
                remedy = "leave one of the two out, or give both the same subject"
                findings.append(Finding(case.name, "error", code, what, remedy))
        if fact.label_content:
            labelled = labels.setdefault(fact.label_content, index)
            if labelled not in {index, copies.get(index)} and case.label != manifest.cases[labelled].label:
                what = f"its label is voxel by voxel that of {manifest.cases[labelled].name}, its image is not"
                remedy = "make sure that each label is of its own image"
                findings.append(Finding(case.name, "warning", "same-label", what, remedy))
    return findings, copies


def _profiles(fact: CaseFacts) -> list[NDArray[np.float32] | None]:
    """The profiles of a case, without those of a copy of another modality: that it is one has been said."""
    contents = [volume.content if volume else None for volume in fact.volumes]
    return [v.profile if v and v.content not in contents[:place] else None for place, v in enumerate(fact.volumes)]


def _file(case: Case, place: int) -> str:
    """The file that holds the volume of one modality."""
    return case.images[place if len(case.images) > 1 else 0]
