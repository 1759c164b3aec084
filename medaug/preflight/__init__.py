"""What is wrong with a cohort, all of it in one pass, before an hour of training is spent on it."""

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
from medaug.preflight.files import examine, read_alone
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
    """Look at a manifest and at its files, each read once, in processes of their own.

    Args:
        manifest: the cohort; it need not be valid.
        depth: "voxels" reads everything; "headers" leaves out what only voxels tell, but for files of one content.
        expected: what the cohort is meant for.
        workers: processes; 0 for one per processor.

    Returns:
        Findings of the manifest, then of each case in their order, then of cases beside each other.
    """
    if depth not in {"voxels", "headers"}:
        raise ValueError(f"depth={depth!r}; voxels or headers")
    expected = expected or Expectations()
    findings = list(check_manifest(manifest, expected))
    frame = replace(manifest, cases=())  # small, for it goes to every worker
    examined = partial(examine, frame, depth == "voxels", expected.intensity)
    facts = []
    results = isolated(partial(examined, {}), manifest.cases, "checking", workers)
    for case, result in zip(manifest.cases, results, strict=True):
        if isinstance(result, Failure):
            paths = [*frame.image_paths(case), *filter(None, [frame.label_path(case)])]
            alone = zip(paths, isolated(read_alone, paths, "", 1), strict=True)
            crashing = {path: outcome.reason for path, outcome in alone if isinstance(outcome, Failure)}
            (result,) = isolated(partial(examined, crashing), [case], "", 1)
        if isinstance(result, Failure):
            what, remedy = f"checking it failed: {result.reason}", "leave the case out, or try check=headers"
            result = [Finding(case.name, "error", "reader-crash", what, remedy)], CaseFacts()
        findings += result[0]
        facts.append(result[1])
    if depth == "headers":
        findings += find_same_files(manifest)
    if depth == "headers" and not subjects_named(manifest, expected):
        what, remedy = "headers do not tell whether two cases are one person", "name the subjects, or check=voxels"
        findings.append(Finding(manifest.name, "note", "subjects-not-compared", what, remedy))
    findings += compare_cases(manifest, facts, expected)
    return Report(tuple(findings), dict(zip([case.name for case in manifest.cases], facts, strict=True)))
