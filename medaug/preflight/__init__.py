"""Checks a cohort before any training, and finds all of its problems in one pass."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Manifest
from medaug.isolation import Failure, isolated
from medaug.preflight.cohort import Expectations, check_manifest, compare_cases, subjects_named
from medaug.preflight.copies import find_same_files
from medaug.preflight.facts import CaseFacts, Report
from medaug.preflight.files import examine, try_to_read
from medaug.preflight.table import report_json, report_table, summary

__all__ = [
    "CaseFacts",
    "Expectations",
    "Finding",
    "Report",
    "check",
    "check_manifest",
    "report_json",
    "report_table",
    "summary",
]


def check(
    manifest: Manifest,
    depth: Literal["voxels", "headers"] = "voxels",
    expected: Expectations | None = None,
    workers: int = 0,
) -> Report:
    """Check a manifest and its files; each file is read once, in a worker process.

    Args:
        manifest: the cohort; it need not be valid.
        depth: "voxels" reads everything; "headers" skips checks that need voxels, but still finds identical files.
        expected: what the cohort is meant for.
        workers: processes; 0 for one per processor.

    Returns:
        Findings about the manifest, then about each case in order, then from comparing the cases.
    """
    if depth not in {"voxels", "headers"}:
        raise ValueError(f"depth={depth!r}; voxels or headers")
    expected = expected or Expectations()
    findings = list(check_manifest(manifest, expected))
    cohort = replace(manifest, cases=())  # without the cases it is small: every worker gets a copy
    examine_case = partial(examine, cohort, depth == "voxels", expected.intensity)
    facts = []
    results = isolated(partial(examine_case, {}), manifest.cases, "checking", workers)
    for case, result in zip(manifest.cases, results, strict=True):
        if isinstance(result, Failure):  # find the files that crash the reader, and examine the case without them
            paths = cohort.files(case)
            outcomes = zip(paths, isolated(try_to_read, paths, "", 1), strict=True)
            crashing = {path: outcome.reason for path, outcome in outcomes if isinstance(outcome, Failure)}
            (result,) = isolated(partial(examine_case, crashing), [case], "", 1)
        if isinstance(result, Failure):
            what, remedy = f"cannot be checked: {result.reason}", "leave the case out, or try check=headers"
            result = [Finding(case.name, "error", "reader-crash", what, remedy)], CaseFacts()
        findings += result[0]
        facts.append(result[1])
    if depth == "headers":
        findings += find_same_files(manifest)
    if depth == "headers" and not subjects_named(manifest, expected):
        what = "headers cannot show whether two cases are one person"
        remedy = "name the subjects, or use check=voxels"
        findings.append(Finding(manifest.name, "note", "subjects-not-compared", what, remedy))
    findings += compare_cases(manifest, facts, expected)
    return Report(tuple(findings), dict(zip([case.name for case in manifest.cases], facts, strict=True)))
