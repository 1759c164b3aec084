"""The files that medaug.ingest writes."""

from __future__ import annotations

import logging
from pathlib import Path

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.files import json_text, write_json
from medaug.ingestion.checking import Folds

log = logging.getLogger(__name__)


def write_manifest(manifest: Manifest, folds: Folds | None, out: Path) -> None:
    """Write the folds, then the manifest, and log a summary.

    Raises:
        UserError: a file with other folds exists, or a file cannot be written.
    """
    if folds is not None:
        folds_file = out.with_name(f"{out.stem}_splits_final.json")
        # An ingest that was killed before it wrote the manifest leaves the same folds.
        if folds_file.exists() and folds_file.read_bytes() != json_text(folds).encode():
            raise UserError(
                f"out={out}: {folds_file} exists already with other folds", "remove it or give another name"
            )
        write_json(folds_file, folds)
        log.info("%d folds are in %s", len(folds), folds_file)
    manifest.save(out)
    counts = ", ".join(f"{len(manifest.subjects(s))} {s}" for s in ("train", "val", "test"))
    subjects = len({case.subject for case in manifest.cases})
    log.info("labels: %s", label_names(manifest.schema))
    for name in dict.fromkeys(name for case in manifest.cases for name in case.attributes):
        values = [case.attributes[name] for case in manifest.cases if name in case.attributes]
        texts = sorted({value for value in values if isinstance(value, str)})
        numbers = [value for value in values if not isinstance(value, str)]
        shown = ", ".join(texts) or f"numbers from {min(numbers):g} to {max(numbers):g}"
        log.info("attribute %s: %s, known of %d cases", name, shown, len(values))
    log.info("%d cases of %d subjects (%s) are in %s", len(manifest.cases), subjects, counts, out)


def label_names(schema: LabelSchema) -> str:
    """Format the labels of a schema, such as "1 organ, 2 lesion"."""
    return ", ".join(f"{value} {name}" for value, name in schema.labels)
