"""The check of a cohort before its manifest is written: names, findings, splits, folds."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medaug.cohort.findings import Finding
from medaug.cohort.folds import splits_final
from medaug.cohort.manifest import Manifest
from medaug.cohort.tables import read_attributes
from medaug.data.cohorts import name_subjects, split_cohort
from medaug.errors import UserError
from medaug.files import write_json
from medaug.options import IngestOptions
from medaug.preflight import CaseFacts, Expectations, Report, check, check_manifest, report_json, report_table, summary

log = logging.getLogger(__name__)

Folds = list[dict[str, list[str]]]
"""Folds in the form of nnU-Net's splits_final.json."""


@dataclass
class Check:
    """One pass over a cohort that collects all findings.

    Attributes:
        options: names, splits, depth of the check.
        expected: what the cohort is meant for.
        renamed: a path in findings, and its replacement.
        remedy: further advice if there are errors.
        findings: the findings so far.
        facts: facts of each case that was read.
    """

    options: IngestOptions
    expected: Expectations
    renamed: tuple[str, str] = ("", "")
    remedy: str = ""
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, CaseFacts] = field(default_factory=dict)

    def run(self, manifest: Manifest, problems: tuple[Finding, ...]) -> tuple[Manifest, Folds | None]:
        """Name the subjects of a cohort, check its files, and split it; the folds are None unless `folds` is set.

        Args:
            manifest: the cohort, with every case in "train".
            problems: findings of earlier steps.

        Raises:
            UserError: there are errors; all findings are then in the log and in the report.
        """
        options, folds = self.options, None
        manifest, self.findings = _without(options.exclude, manifest, problems)
        if options.name is not None:
            manifest = replace(manifest, name=options.name)
        failed = {finding.case for finding in self.findings if finding.severity == "error"}
        lost = failed - {case.name for case in manifest.cases}
        if not manifest.cases:
            what, remedy = "no case is left", "correct the errors above, or check root"
            self.findings.append(Finding(manifest.name, "error", "no-case", what, remedy))
        else:
            manifest = name_subjects(manifest, options)
            if not lost:  # otherwise the user's tables list cases that are missing, and counts are wrong
                manifest = self._with_attributes(manifest)
                self._try_split(manifest)
            if options.check != "none":
                self._examine(manifest)
            if not lost:
                manifest, folds = self._split(manifest)
        self._conclude()
        return manifest, folds

    def _with_attributes(self, manifest: Manifest) -> Manifest:
        if self.options.attributes is None:
            return manifest
        try:
            return replace(manifest, cases=read_attributes(Path(self.options.attributes), manifest.cases))
        except UserError as error:
            self.findings.append(Finding.from_error(manifest.name, "attributes", error))
            return manifest

    def _try_split(self, manifest: Manifest) -> None:
        """End here if there are too few subjects to split, because reading all files takes minutes."""
        try:
            split_cohort(manifest, self.options)
        except UserError as error:
            self.findings.append(Finding.from_error(manifest.name, "splits", error))
            self._conclude()

    def _examine(self, manifest: Manifest) -> None:
        """Read the files of all cases."""
        depth: Literal["headers", "voxels"] = "headers" if self.options.check == "headers" else "voxels"
        # The number of labelled cases is checked later, when the training cases are known.
        found = check(manifest, depth, replace(self.expected, labelled=None), self.options.workers)
        self.findings += found.findings
        self.facts = dict(found.facts)

    def _split(self, manifest: Manifest) -> tuple[Manifest, Folds | None]:
        options, folds = self.options, None
        strata = {name: fact.classes for name, fact in self.facts.items()} if options.check == "voxels" else None
        try:
            manifest = split_cohort(manifest, options, strata)
            if options.folds is not None:
                folds = splits_final(manifest.cases, options.folds, options.split_seed)
        except UserError as error:
            self.findings.append(Finding.from_error(manifest.name, "splits", error))
        else:
            self.findings += check_manifest(manifest, self.expected) if options.check != "none" else ()
        return manifest, folds

    def _conclude(self) -> None:
        """Show all findings; raises a UserError if there are errors."""
        findings = self.findings
        if self.renamed[0]:
            findings = [f if f.path is None else replace(f, path=f.path.replace(*self.renamed)) for f in findings]
        report = Report(tuple(dict.fromkeys(findings)), self.facts)
        show(report, self.options.report)
        if errors := report.count("error"):
            # The message leaves out the root: a folder of DICOM may have a patient's name.
            raise UserError(
                "not written",
                f"correct the {errors} error(s) listed above, or leave their cases out "
                f"with exclude=[CASE,...]{self.remedy}",
                path=self.options.out,
            )


def _without(exclude: list[str], manifest: Manifest, problems: tuple[Finding, ...]) -> tuple[Manifest, list[Finding]]:
    """Remove the cases that the user excludes from a cohort and its findings."""
    known = {case.name for case in manifest.cases} | {finding.case for finding in problems}
    if unknown := [name for name in exclude if name not in known]:
        raise UserError(f"exclude: {', '.join(unknown)}: no such case", "give the names that the findings show")
    cases = tuple(case for case in manifest.cases if case.name not in exclude)
    return replace(manifest, cases=cases), [finding for finding in problems if finding.case not in exclude]


def show(report: Report, path: str | None) -> None:
    """Show findings as a table on a terminal, as lines in a log (errors last), and all as JSON in the file `path`."""
    if sys.stderr.isatty() and report.findings:
        from rich.console import Console

        Console(stderr=True).print(report_table(report.findings))
    else:
        levels = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
        # Errors last, where they are noticed; within a severity in the order found, causes before consequences.
        for severity, alike, rest in sorted(summary(report.findings), key=lambda kind: list(levels).index(kind[0])):
            for line in [*alike, *([rest] if rest else [])]:
                log.log(levels[severity], "%s", line)
    if path is not None:
        write_json(path, report_json(report))
        log.info("all findings are in %s", path)
