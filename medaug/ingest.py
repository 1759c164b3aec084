"""Stage: files to a checked manifest.

python -m medaug.ingest root=DIR out=FILE.json [layout=auto] [subject_pattern='(.*)_visit']
python -m medaug.ingest root=TREE layout=dicom rules=rules.yaml out=FILE.json
python -m medaug.ingest download=Task04_Hippocampus to=DIR
python -m medaug.ingest withdraw=SUBJECT [out=FILE.json] [runs=runs]
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import DataOptions, IngestOptions, Options

if TYPE_CHECKING:
    from medaug.cohort import LabelSchema, Manifest
    from medaug.cohort.findings import Finding
    from medaug.preflight import CaseFacts, Expectations, Report

log = logging.getLogger(__name__)

Folds = list[dict[str, list[str]]]  # as nnU-Net's splits_final.json has them


def main(options: Options) -> None:
    """Read a folder, split it by subject, say everything that is wrong, and write the manifest if nothing is."""
    wanted = options.ingest
    if wanted.download is not None:
        if wanted.to is None:
            raise UserError(f"download={wanted.download}: to=DIR is needed, the folder to unpack it in")
        from medaug.download import download_task

        log.info("the task is in %s", download_task(wanted.download, Path(wanted.to), wanted.mirror))
    elif wanted.withdraw is not None:
        _list_withdrawn(wanted.withdraw, wanted, Path(options.runs))
    else:
        _ingest(wanted, options.data)


def _ingest(wanted: IngestOptions, data: DataOptions) -> None:
    if wanted.root is None or wanted.out is None:
        raise UserError("root=DIR and out=FILE.json are needed: the folder with the scans, and the manifest to write")
    out = Path(wanted.out)
    if out.suffix != ".json":
        raise UserError(f"out={out}: a manifest is a .json file")
    folds_file = out.with_name(f"{out.stem}_splits_final.json")
    _refuse_existing(out)
    if wanted.report is not None:
        _check_report(Path(wanted.report), out)
    if wanted.workers < 0:
        raise UserError(f"workers={wanted.workers}: a number of processes is 0 (one per processor) or more")
    if wanted.check not in {"voxels", "headers", "none"}:
        raise UserError(f"check={wanted.check}: not one of voxels, headers, none")

    from medaug.cohort import LabelSchema
    from medaug.data.grid import check_intensity
    from medaug.dicom.convert import ingest_dicom
    from medaug.dicom.privacy import private_path
    from medaug.imaging.intensity import Intensity
    from medaug.layouts import detect_layout, read_layout
    from medaug.layouts.rules import NO_RULES, read_rules, with_excluded, with_pairs
    from medaug.locks import alone
    from medaug.preflight import Expectations, Report

    rules = read_rules(Path(wanted.rules)) if wanted.rules is not None else NO_RULES
    rules = with_pairs(rules, wanted.images, wanted.labels, wanted.case_pattern, wanted.classes)
    rules = with_excluded(rules, wanted.exclude_series)
    layout = detect_layout(wanted.root, rules) if wanted.layout == "auto" else wanted.layout
    log.info("layout %s%s", layout, " detected" if wanted.layout == "auto" else "")
    named = layout == "dicom" or wanted.subjects is not None or wanted.subject_pattern is not None
    check_intensity(data)
    low, high = data.percentiles
    window = None if data.window is None else (data.window[0], data.window[1])
    intensity = Intensity(data.intensity, (low, high), window, data.zscore_clip)
    expected = Expectations(intensity=intensity, labelled=data.labelled, subjects_named=named)
    if layout == "dicom":
        if wanted.report is not None and Path(wanted.report).resolve().is_relative_to(Path(wanted.root).resolve()):
            raise UserError("report: lies inside root, where nothing is ever written; give a path outside of it")
        schema = LabelSchema.from_mapping(rules.schema, rules.source) if rules.schema else None
        with ingest_dicom(wanted.root, rules, schema, wanted, out) as ingested:
            # Files are named as they will be: the temporary folder is gone when the user reads of them.
            names = (ingested.manifest.root, str(ingested.folder))
            remedy = f"; {private_path(out, wanted.private)} says which files are meant"
            rest = replace(wanted, exclude=[])  # they are left out already
            problems = (*ingested.findings, *_beside_dicom(Path(wanted.root), rules.label, ingested.manifest.name))
            manifest, folds = _checked(ingested.manifest, problems, rest, expected, names, remedy)
            _write(replace(manifest, root=ingested.keep().root), folds, out, folds_file)
        return
    found = read_layout(wanted.root, layout, rules)
    if found.proposed and not wanted.accept_labels:
        _say(Report(found.problems), wanted)  # they may say that this is no such layout
        raise UserError(
            f"{wanted.root}: by its file names layout {layout} has the labels {_told(found.manifest.schema)}; "
            "confirm them with accept_labels=true, or give your own with rules=FILE.yaml"
        )
    with alone(out):
        _refuse_existing(out)
        _write(*_checked(found.manifest, found.problems, wanted, expected), out, folds_file)


def _beside_dicom(root: Path, label: str | None, cohort: str) -> Iterator[Finding]:
    """Note how many volumes of other formats lie in a tree of DICOM and are no labels; their names may be patients'."""
    from medaug.cohort.findings import Finding
    from medaug.imaging.reading import suffix_of

    there = {Path(folder, name) for folder, _, names in os.walk(root) for name in names if suffix_of(name)}
    if unused := there - set(root.glob(label) if label else ()):
        kinds = ", ".join(sorted({suffix_of(path.name).lower() for path in unused}))
        what = f"{len(unused)} files ({kinds}) are not used: beside DICOM such files are labels, which the rules name"
        yield Finding(cohort, "note", "unused-file", what, "nothing, or name them by the glob `label` in the rules")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"out={out}: {out} exists already; remove it or give another name")


def _check_report(path: Path, out: Path) -> None:
    """Refuse to write the report over anything but an earlier report."""
    if path.resolve() == out.resolve():
        raise UserError(f"report={path}: is the manifest's name too; give another one")
    if path.exists():
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not {"findings", "cases"} <= content.keys():
            raise UserError(f"report={path}: exists and is not a report of medaug.ingest; give another name")


def _checked(
    manifest: Manifest,
    problems: tuple[Finding, ...],
    wanted: IngestOptions,
    expected: Expectations,
    renamed: tuple[str, str] = ("", ""),
    remedy: str = "",
) -> tuple[Manifest, Folds | None]:
    """The manifest, named, looked through and split, and the folds if they are wanted.

    Args:
        manifest: every case in "train".
        problems: what was found wrong on the way here.
        wanted: names, splits, depth of the check.
        expected: what the cohort is meant for.
        renamed: what is called otherwise in findings, and how.
        remedy: what else the user is told where there are errors.

    Raises:
        UserError: there are errors; all findings have been said by then, and are in the report.
    """
    from medaug.cohort.findings import Finding
    from medaug.cohort.folds import splits_final
    from medaug.cohort.tables import read_attributes
    from medaug.data.cohorts import name_subjects, split_cohort
    from medaug.preflight import check, check_manifest

    manifest, findings = _without(wanted.exclude, manifest, problems)
    facts: dict[str, CaseFacts] = {}
    folds: Folds | None = None
    if wanted.name is not None:
        manifest = replace(manifest, name=wanted.name)
    lost = {finding.case for finding in findings if finding.severity == "error"} - {c.name for c in manifest.cases}
    if not manifest.cases:
        findings.append(
            Finding(manifest.name, "error", "no-case", "no case is left", "mend what was found before, or check root")
        )
    else:
        manifest = name_subjects(manifest, wanted)
        if wanted.attributes is not None and not lost:  # with cases missing, the table names more than there are
            try:
                manifest = replace(manifest, cases=read_attributes(Path(wanted.attributes), manifest.cases))
            except UserError as error:
                findings.append(Finding.from_error(manifest.name, "attributes", error))
        if not lost:  # with cases missing, numbers say nothing
            # Labels change who goes where, but not whether there are enough: not to be said after minutes of reading.
            try:
                split_cohort(manifest, wanted)
            except UserError as error:
                findings.append(Finding.from_error(manifest.name, "splits", error))
                _conclude(findings, facts, wanted, renamed, remedy)
        if wanted.check != "none":
            depth: Literal["headers", "voxels"] = "headers" if wanted.check == "headers" else "voxels"
            # How many keep their labels is counted below, among those that are for training.
            found = check(manifest, depth, replace(expected, labelled=None), wanted.workers)
            findings += found.findings
            facts = dict(found.facts)
        if not lost:
            strata = {name: fact.classes for name, fact in facts.items()} if wanted.check == "voxels" else None
            try:
                manifest = split_cohort(manifest, wanted, strata)
                folds = None if wanted.folds is None else splits_final(manifest.cases, wanted.folds, wanted.split_seed)
            except UserError as error:
                findings.append(Finding.from_error(manifest.name, "splits", error))
            else:
                findings += check_manifest(manifest, expected) if wanted.check != "none" else ()
    _conclude(findings, facts, wanted, renamed, remedy)
    return manifest, folds


def _conclude(
    findings: list[Finding],
    facts: dict[str, CaseFacts],
    wanted: IngestOptions,
    renamed: tuple[str, str],
    remedy: str,
) -> None:
    """Say all findings; raises a UserError where errors are among them. Arguments as of `_checked`."""
    from medaug.preflight import Report

    if renamed[0]:
        findings = [f if f.path is None else replace(f, path=f.path.replace(*renamed)) for f in findings]
    report = Report(tuple(dict.fromkeys(findings)), facts)
    _say(report, wanted)
    if errors := report.count("error"):
        # The root stays unnamed: a folder of DICOM may be called by a patient's name.
        raise UserError(
            f"{wanted.out}: not written; mend the {errors} error(s) listed above, or leave their cases out with "
            f"exclude=[CASE,...]{remedy}"
        )


def _without(exclude: list[str], manifest: Manifest, problems: tuple[Finding, ...]) -> tuple[Manifest, list[Finding]]:
    """The cohort and its findings less the cases that the user leaves out."""
    known = {case.name for case in manifest.cases} | {finding.case for finding in problems}
    if unknown := [name for name in exclude if name not in known]:
        raise UserError(f"exclude: {', '.join(unknown)}: no such case; give names as the findings have them")
    cases = tuple(case for case in manifest.cases if case.name not in exclude)
    return replace(manifest, cases=cases), [finding for finding in problems if finding.case not in exclude]


def _say(report: Report, wanted: IngestOptions) -> None:
    """The findings: as a table on a terminal, as lines in a log (errors last), all of them as JSON in the report."""
    from medaug.files import write_json
    from medaug.preflight import report_json, report_table, summary

    if sys.stderr.isatty() and report.findings:
        from rich.console import Console

        Console(stderr=True).print(report_table(report.findings))
    else:
        levels = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
        # Errors last, where they are seen, and each kind in the order of finding: causes before what follows from them.
        for severity, alike, rest in sorted(summary(report.findings), key=lambda kind: list(levels).index(kind[0])):
            for line in [*alike, *([rest] if rest else [])]:
                log.log(levels[severity], "%s", line)
    if wanted.report is not None:
        write_json(wanted.report, report_json(report))
        log.info("all findings are in %s", wanted.report)


def _write(manifest: Manifest, folds: Folds | None, out: Path, folds_file: Path) -> None:
    from medaug.files import json_text, write_json

    if folds is not None:
        # An ingest that was killed before it wrote the manifest has left the same folds.
        if folds_file.exists() and folds_file.read_bytes() != json_text(folds).encode():
            raise UserError(f"out={out}: {folds_file} exists already with other folds; remove it or give another name")
        write_json(folds_file, folds)
        log.info("%d folds are in %s", len(folds), folds_file)
    manifest.save(out)
    counts = ", ".join(f"{len(manifest.subjects(s))} {s}" for s in ("train", "val", "test"))
    subjects = len({case.subject for case in manifest.cases})
    log.info("labels: %s", _told(manifest.schema))
    for name in dict.fromkeys(name for case in manifest.cases for name in case.attributes):
        values = [case.attributes[name] for case in manifest.cases if name in case.attributes]
        texts = sorted({value for value in values if isinstance(value, str)})
        numbers = [value for value in values if not isinstance(value, str)]
        told = ", ".join(texts) or f"numbers from {min(numbers):g} to {max(numbers):g}"
        log.info("attribute %s: %s, known of %d cases", name, told, len(values))
    log.info("%d cases of %d subjects (%s) are in %s", len(manifest.cases), subjects, counts, out)


def _told(schema: LabelSchema) -> str:
    return ", ".join(f"{value} {name}" for value, name in schema.labels)


def _list_withdrawn(subject: str, wanted: IngestOptions, runs: Path) -> None:
    from medaug.dicom.privacy import private_path
    from medaug.withdrawal import withdraw

    manifest = None if wanted.out is None else Path(wanted.out)
    private = None if wanted.private is None else Path(wanted.private)
    if private is None and manifest is not None and private_path(manifest, None).exists():
        private = private_path(manifest, None)
    artefacts = withdraw(subject, runs, private, manifest)
    for artefact in artefacts:
        log.info("%s%s: %s: %s", "" if artefact.certain else "perhaps ", artefact.kind, artefact.path, artefact.why)
    log.info("%d artefacts; nothing was deleted", len(artefacts))


if __name__ == "__main__":
    launch("ingest", main)
