"""The work of medaug.ingest on a folder of scans."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medaug.cohort.findings import Finding
from medaug.cohort.schema import LabelSchema
from medaug.data.grid import check_intensity
from medaug.dicom.convert import ingest_dicom
from medaug.dicom.privacy import private_path
from medaug.errors import UserError
from medaug.imaging.intensity import Intensity
from medaug.imaging.reading import suffix_of
from medaug.ingestion.checking import Check, show
from medaug.ingestion.refusals import refuse_existing
from medaug.ingestion.writing import label_names, write_manifest
from medaug.layouts import detect_layout, read_layout
from medaug.layouts.rules import NO_RULES, Rules, read_rules, with_excluded, with_pairs
from medaug.locks import exclusive
from medaug.options import DataOptions, IngestOptions
from medaug.preflight import Expectations, Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A folder of scans for which a manifest is to be written.

    Attributes:
        root: the folder.
        out: the manifest to write.
        options: the `ingest` options.
        rules: the user's rules.
        layout: layout of the folder.
        expected: what the cohort is meant for.
    """

    root: str
    out: Path
    options: IngestOptions
    rules: Rules
    layout: str
    expected: Expectations

    @classmethod
    def plan(cls, root: str, out: Path, options: IngestOptions, data: DataOptions) -> Job:
        """Read the rules and detect the layout.

        Raises:
            UserError: the rules or intensity options are wrong, or the layout is unknown.
        """
        rules = read_rules(Path(options.rules)) if options.rules is not None else NO_RULES
        rules = with_pairs(rules, options.images, options.labels, options.case_pattern, options.classes)
        rules = with_excluded(rules, options.exclude_series)
        layout = detect_layout(root, rules) if options.layout == "auto" else options.layout
        log.info("layout %s%s", layout, " detected" if options.layout == "auto" else "")
        named = layout == "dicom" or options.subjects is not None or options.subject_pattern is not None
        check_intensity(data)
        low, high = data.percentiles
        window = None if data.window is None else (data.window[0], data.window[1])
        intensity = Intensity(data.intensity, (low, high), window, data.zscore_clip)
        expected = Expectations(intensity=intensity, labelled=data.labelled, subjects_named=named)
        return cls(root, out, options, rules, layout, expected)

    def run(self) -> None:
        """Read the folder, check the cohort, and write the manifest.

        Raises:
            UserError: something is wrong with the cohort, or a file cannot be written.
        """
        if self.layout == "dicom":
            self._convert()
        else:
            self._read()

    def _read(self) -> None:
        found = read_layout(self.root, self.layout, self.rules)
        if found.proposed and not self.options.accept_labels:
            show(Report(found.problems), self.options.report)  # findings may show that the layout is another one
            raise UserError(
                f"by its file names layout {self.layout} has the labels {label_names(found.manifest.schema)}",
                "confirm them with accept_labels=true, or give your own with rules=FILE.yaml",
                path=self.root,
            )
        with exclusive(self.out):
            refuse_existing(self.out)
            manifest, folds = Check(self.options, self.expected).run(found.manifest, found.problems)
            write_manifest(manifest, folds, self.out)

    def _convert(self) -> None:
        """Convert a DICOM tree to NIfTI beside the manifest, and ingest the result."""
        options, rules, root = self.options, self.rules, Path(self.root)
        if options.report is not None and Path(options.report).resolve().is_relative_to(root.resolve()):
            raise UserError("report: is inside root, where nothing may be written", "give a path outside of it")
        schema = LabelSchema.from_mapping(rules.schema, rules.source) if rules.schema else None
        with ingest_dicom(self.root, rules, schema, options, self.out) as ingested:
            # Findings show the final paths, because the temporary folder is gone when the user reads them.
            names = (ingested.manifest.root, str(ingested.folder))
            remedy = f"; {private_path(self.out, options.private)} lists the files that they are about"
            rest = replace(options, exclude=[])  # these cases are left out already
            problems = (*ingested.findings, *beside_dicom(root, rules.label, ingested.manifest.name))
            manifest, folds = Check(rest, self.expected, names, remedy).run(ingested.manifest, problems)
            write_manifest(replace(manifest, root=ingested.keep().root), folds, self.out)


def beside_dicom(root: Path, label: str | None, cohort: str) -> Iterator[Finding]:
    """Count volumes of other formats in a DICOM tree that are not labels; their names may identify patients."""
    files = {Path(folder, name) for folder, _, names in os.walk(root) for name in names if suffix_of(name)}
    if unused := files - set(root.glob(label) if label else ()):
        kinds = ", ".join(sorted({suffix_of(path.name).lower() for path in unused}))
        what = (
            f"{len(unused)} files ({kinds}) are not used: in a DICOM tree they can only be labels, named by the rules"
        )
        yield Finding(
            cohort, "note", "unused-file", what, "nothing to do, or name them by the glob `label` in the rules"
        )
