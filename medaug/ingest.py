"""Stage: files to a checked manifest.

python -m medaug.ingest root=DIR out=FILE.json [layout=auto] [subject_pattern='(.*)_visit']
python -m medaug.ingest root=TREE layout=dicom rules=rules.yaml out=FILE.json
python -m medaug.ingest download=Task04_Hippocampus to=DIR
python -m medaug.ingest withdraw=SUBJECT [out=FILE.json] [runs=runs]
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.config import launch
from medaug.errors import UserError
from medaug.options import DataOptions, IngestOptions, Options

if TYPE_CHECKING:
    from medaug.cohort import LabelSchema, Manifest
    from medaug.imaging.preflight import Expectations, Report
    from medaug.imaging.preflight.findings import Finding

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Read a folder, split it by subject, say everything that is wrong, and write the manifest if nothing is."""
    wanted = options.ingest
    if wanted.download is not None:
        if wanted.to is None:
            raise UserError(f"download={wanted.download}: to=DIR is needed, the folder to unpack it in")
        from medaug.imaging.download import download_task

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
    if out.exists():
        raise UserError(f"out={out}: exists already; remove it or give another name")
    if wanted.check not in {"voxels", "headers", "none"}:
        raise UserError(f"check={wanted.check}: not one of voxels, headers, none")

    from medaug.cohort import LabelSchema
    from medaug.data.grid import check_options
    from medaug.imaging.dicom.convert import ingest_dicom
    from medaug.imaging.intensity import Intensity
    from medaug.imaging.layouts import detect_layout, read_layout
    from medaug.imaging.preflight import Expectations
    from medaug.imaging.rules import NO_RULES, read_rules, with_pairs

    rules = read_rules(Path(wanted.rules)) if wanted.rules is not None else NO_RULES
    rules = with_pairs(rules, wanted.images, wanted.labels, wanted.case_pattern, wanted.classes)
    layout = detect_layout(wanted.root, rules) if wanted.layout == "auto" else wanted.layout
    log.info("layout %s%s", layout, " detected" if wanted.layout == "auto" else "")
    named = layout == "dicom" or wanted.subjects is not None or wanted.subject_pattern is not None
    check_options(data)
    low, high = data.percentiles
    window = None if data.window is None else (data.window[0], data.window[1])
    intensity = Intensity(data.intensity, (low, high), window, data.zscore_clip)
    expected = Expectations(intensity=intensity, labelled=data.labelled, subjects_named=named)
    if layout == "dicom":
        schema = LabelSchema.from_mapping(rules.schema, rules.source) if rules.schema else None
        with ingest_dicom(wanted.root, rules, schema, wanted, out) as ingested:
            # Files are named as they will be: the temporary folder is gone when the user reads of them.
            manifest = _checked(ingested.manifest, ingested.findings, wanted, expected, ingested.folder)
            _write(replace(manifest, root=ingested.keep().root), wanted, out)
        return
    found = read_layout(wanted.root, layout, rules)
    if found.proposed and not wanted.accept_labels:
        raise UserError(
            f"{wanted.root}: by its file names layout {layout} has the labels {_told(found.manifest.schema)}; "
            "confirm them with accept_labels=true, or give your own with rules=FILE.yaml"
        )
    _write(_checked(found.manifest, found.problems, wanted, expected), wanted, out)


def _checked(
    manifest: Manifest,
    problems: tuple[Finding, ...],
    wanted: IngestOptions,
    expected: Expectations,
    folder: Path | None = None,
) -> Manifest:
    """The manifest, named, looked through and split.

    Args:
        manifest: every case in "train".
        problems: what was found wrong on the way here.
        wanted: names, splits, depth of the check.
        expected: what the cohort is meant for.
        folder: what the manifest's root is called in findings; None: as it is.

    Raises:
        UserError: there are errors; all findings have been said by then, and are in the report.
    """
    from medaug.data.cohorts import name_subjects, split_cohort
    from medaug.imaging.preflight import CaseFacts, Report, check, check_manifest
    from medaug.imaging.preflight.findings import Finding

    findings: list[Finding] = list(problems)
    facts: dict[str, CaseFacts] = {}
    if wanted.name is not None:
        manifest = replace(manifest, name=wanted.name)
    if manifest.cases:
        manifest = name_subjects(manifest, wanted)
        if wanted.check != "none":
            found = check(manifest, "headers" if wanted.check == "headers" else "voxels", expected, wanted.workers)
            findings += found.findings
            facts = dict(found.facts)
        strata = {name: fact.classes for name, fact in facts.items()} if wanted.check == "voxels" else None
        try:
            manifest = split_cohort(manifest, wanted, strata)
        except UserError as error:
            findings.append(Finding.from_error(manifest.name, "splits", error))
        else:
            findings += check_manifest(manifest, expected) if wanted.check != "none" else ()
    if folder is not None:
        findings = [replace(finding, what=finding.what.replace(manifest.root, str(folder))) for finding in findings]
    report = Report(tuple(dict.fromkeys(findings)), facts)
    _say(report, wanted)
    if errors := report.count("error"):
        # The root stays unnamed: a folder of DICOM may be called by a patient's name.
        raise UserError(f"{wanted.out}: not written; mend the {errors} error(s) listed above, or leave those cases out")
    return manifest


def _say(report: Report, wanted: IngestOptions) -> None:
    """All findings: as a table on a terminal, as lines in a log, and as JSON where a report is wanted."""
    from medaug.files import atomic_write
    from medaug.imaging.preflight import report_json, report_table

    if sys.stderr.isatty() and report.findings:
        from rich.console import Console

        Console(stderr=True).print(report_table(report.findings))
    else:
        levels = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}
        for finding in report.findings:
            log.log(levels[finding.severity], "%s", finding)
    if wanted.report is not None:
        with atomic_write(wanted.report) as temporary:
            temporary.write_text(json.dumps(report_json(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write(manifest: Manifest, wanted: IngestOptions, out: Path) -> None:
    from medaug.cohort.folds import splits_final
    from medaug.files import atomic_write

    if wanted.folds is not None:
        folds = splits_final(manifest.cases, wanted.folds, wanted.split_seed)
        with atomic_write(out.with_name(f"{out.stem}_splits_final.json")) as temporary:
            temporary.write_text(json.dumps(folds, indent=1) + "\n")
    manifest.save(out)
    counts = ", ".join(f"{len(manifest.subjects(s))} {s}" for s in ("train", "val", "test"))
    subjects = len({case.subject for case in manifest.cases})
    log.info("labels: %s", _told(manifest.schema))
    log.info("%d cases of %d subjects (%s) are in %s", len(manifest.cases), subjects, counts, out)


def _told(schema: LabelSchema) -> str:
    return ", ".join(f"{value} {name}" for value, name in schema.labels)


def _list_withdrawn(subject: str, wanted: IngestOptions, runs: Path) -> None:
    from medaug.withdrawal import withdraw

    manifest = None if wanted.out is None else Path(wanted.out)
    private = None if wanted.private is None else Path(wanted.private)
    if private is None and manifest is not None and manifest.with_suffix(".private.json").exists():
        private = manifest.with_suffix(".private.json")
    artefacts = withdraw(subject, runs, private, manifest)
    for artefact in artefacts:
        log.info("%s%s: %s: %s", "" if artefact.certain else "perhaps ", artefact.kind, artefact.path, artefact.why)
    log.info("%d artefacts; nothing was deleted", len(artefacts))


if __name__ == "__main__":
    launch("ingest", main)
