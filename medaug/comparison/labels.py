"""Which training scans keep their labels in a job: all of them, or those of randomly chosen subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from medaug.cohort.folds import hide_labels
from medaug.cohort.manifest import Case, Manifest
from medaug.comparison.external import SOURCE
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.data.cases import ModelCase, load_cases
from medaug.data.cohorts import find_cohort
from medaug.data.contents import case_contents, cohort_digest
from medaug.errors import UserError
from medaug.options import BenchmarkOptions, DataOptions
from medaug.training.checkpoint import Card

ALL = "all"


def label_counts(options: BenchmarkOptions) -> list[int | None]:
    """The numbers of labelled training subjects to compare, in the order given; None: all.

    Raises:
        UserError: an entry is neither "all" nor a positive integer.
    """
    for word in options.labelled:
        if word != ALL and not (word.isascii() and word.isdigit() and int(word) > 0):
            raise UserError(
                f"benchmark.labelled={word}", "give numbers of subjects (1 or more) or all, as in [4,8,all]"
            )
    return [None if word == ALL else int(word) for word in options.labelled]


def with_hidden_labels(cohort: Manifest, card: Card, phantoms: Path) -> Manifest:
    """The cohort of a training, including the labels that `data.labelled` hid from that training.

    Args:
        cohort: the cohort as the training saw it.
        card: card of the training's checkpoint.
        phantoms: folder of the run's phantoms.

    Raises:
        UserError: the source of the cohort cannot be read, or it is not the one that the training used.
    """
    known = {field.name for field in fields(DataOptions)}
    stored = {key: value for key, value in card.options["data"].items() if key in known}
    if stored.get("labelled") is None:
        return cohort
    options = DataOptions(**stored | {"labelled": None, "roots": [cohort.root]})
    source = {case.name: case for case in find_cohort(options, phantoms).cases}
    cases = []
    for case in cohort.cases:
        whole = source.get(case.name)
        if whole is None or (whole.subject, whole.split) != (case.subject, case.split):
            raise UserError(
                f"benchmark.labelled: {case.name} is missing from the cohort of the training (which hid labels with "
                f"data.labelled={stored['labelled']}), or has another subject or split there",
                "restore the manifest, or use labelled=[all]",
            )
        cases.append(replace(case, label=whole.label))
    return replace(cohort, cases=tuple(cases))


@dataclass(frozen=True)
class TrainingScans:
    """The training scans of a benchmark.

    Attributes:
        inputs: generator, pairs and cohort.
        cohort: the cohort with every label that is known, including those that the generator's training did not see.
    """

    inputs: Inputs
    cohort: Manifest

    @classmethod
    def find(cls, inputs: Inputs, counts: Sequence[int | None]) -> TrainingScans:
        """The scans for these numbers of labelled subjects.

        Raises:
            UserError: as for `with_hidden_labels`.
        """
        hidden = any(count is not None for count in counts)
        cohort = (
            with_hidden_labels(inputs.cohort, inputs.card, inputs.cache.parent / "phantom") if hidden else inputs.cohort
        )
        return cls(inputs, cohort)

    @property
    def identity(self) -> dict[str, str]:
        """What a result depends on in addition to the benchmark's inputs: labels that the inputs do not include."""
        return {} if self.cohort == self.inputs.cohort else {"labels": self.digest()}

    def digest(self) -> str:
        """Digest of the cohort with all labels, from the current files."""
        return cohort_digest(self.cohort, case_contents(self.cohort, self.cohort.cases, self.inputs.cache))

    @cached_property
    def labelled(self) -> list[ModelCase]:
        """All training scans with a label, in model space."""
        return self._load([case for case in self.cohort.split("train") if case.label is not None])

    def kept(self, job: Job) -> set[str]:
        """Names of the training scans that keep their label in a job.

        Raises:
            UserError: there are not as many training subjects with labels.
        """
        if job.labelled is None:
            return {case.name for case in self.inputs.labelled("train")}
        cases = hide_labels(self.cohort.cases, job.labelled, job.draw or 0)
        return {case.name for case in cases if case.split == "train" and case.label is not None}

    def real(self, job: Job) -> list[ModelCase]:
        """The training scans that keep their label in a job, in model space."""
        kept = self.kept(job)
        return [case for case in self.labelled if case.case.name in kept]

    def unlabelled(self, job: Job) -> list[ModelCase]:
        """The other training scans, without their labels."""
        kept = self.kept(job)
        hidden = [case for case in self.labelled if case.case.name not in kept]
        never = [case for case in self.cohort.split("train") if case.label is None]
        return [replace(case, case=replace(case.case, label=None), label=None) for case in hidden] + self._load(never)

    def refuse_seen(self, job: Job) -> None:
        """Refuse a job with pairs if the generator saw labels that the job hides.

        Raises:
            UserError: the generator saw such a label; names the subject.
        """
        if job.labelled is None:
            return
        kept, seen, pairs = self.kept(job), self.inputs.seen, self.inputs.pairs
        hidden = [case for case in self.cohort.split("train") if case.label is not None and case.name not in kept]
        contents = case_contents(self.cohort, hidden, self.inputs.cache)
        if self.inputs.external is None:
            visible = {case.name for case in self.inputs.labelled("train")}
        else:  # a declaration names subjects, not their labels, so all labels of these subjects count as seen
            visible = {case.name for case in hidden if case.subject in seen.in_split("train") | seen.in_split("val")}
        known = [case for case in hidden if case.name in visible or contents[case.name][-1] in seen.contents]
        subjects = {case.subject for case in hidden}
        for record in () if pairs is None else pairs.records:
            if record.get("mask_source") in ("generated", SOURCE) or len(record["subjects"]) > 1:
                known += [case for case in hidden if case.subject in subjects & set(record["subjects"])]
        if known:
            raise UserError(
                f"leak: {job} hides the label of subject {known[0].subject}, which the generator saw",
                f"train it with data.labelled={job.labelled} data.labelled_seed={job.draw}, or leave the arm out",
            )

    def _load(self, cases: Sequence[Case]) -> list[ModelCase]:
        return load_cases(self.cohort, cases, self.inputs.card.preprocessing, self.inputs.cache)
