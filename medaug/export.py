"""Stage: write the synthetic pairs, or any cohort, in another tool's format.

python -m medaug.export experiment=hippocampus format=msd out=DIR
python -m medaug.export experiment=hippocampus format=nnunet out=nnUNet_raw/Dataset501_Hippocampus
python -m medaug.export experiment=hippocampus format=nnunet with_cohort=true out=nnUNet_raw/Dataset503_Both
python -m medaug.export manifest=cohort.json format=nnunet out=nnUNet_raw/Dataset502_Cohort
python -m medaug.export experiment=hippocampus format=dicom out=DIR [segmentation=LABELMAP]
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import command, stage_folder

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write pairs or a cohort in the requested format, to a folder that must not exist yet.

    Each export is recorded in `runs/EXP/exports.jsonl`, or beside the manifest, so that `medaug.ingest withdraw` finds
    it.
    """
    wanted = options.export
    if wanted.out is None:
        raise UserError("out=DIR is missing", "give a folder that does not exist yet")
    if wanted.manifest is None and not options.experiment:
        raise UserError("nothing to export", "give experiment=NAME for its synthetic pairs, or manifest=FILE")

    from medaug.cohort import provenance
    from medaug.cohort.manifest import Manifest
    from medaug.data.cache import content_digests
    from medaug.exporting.formats import WRITERS
    from medaug.exporting.request import Export
    from medaug.marking.signing import Signer
    from medaug.synthesis.joining import beside_cohort
    from medaug.synthesis.pairs import Pairs
    from medaug.viewing.reviews import Reviews

    write = WRITERS[wanted.format]
    signer = None if wanted.sign_key is None else Signer.load(Path(wanted.sign_key))
    out, seen = Path(wanted.out), frozenset[str]()
    if wanted.manifest is not None:
        source = Path(wanted.manifest)
        cohort, digest, record = Manifest.load(source), "", source.with_suffix(".exports.jsonl")
        records = tuple(provenance.read_all(source.parent, provenance.PAIR).values())
    else:
        folder = stage_folder(options, "generate")
        pairs = Pairs.load(folder, command("generate", options))
        if wanted.reviews is not None:
            pairs = pairs.without(Reviews.load(wanted.reviews, [case.name for case in pairs.manifest.cases]).rejected)
        cohort, digest, record = pairs.manifest, pairs.digest, folder.parent / "exports.jsonl"
        if wanted.with_cohort:
            cohort, seen = beside_cohort(pairs, stage_folder(options, "train"))
        records = tuple(dict(one) for one in pairs.records)
        files = [path for case in pairs.manifest.cases for path in pairs.manifest.files(case)]
        pairs.refuse_changed(content_digests(files, folder.parent / "cache"))
    line = {"out": str(out.resolve()), "format": wanted.format, "cases": len(cohort.cases), "digest": digest}
    made = {one["name"]: one for one in records}
    write(
        Export(
            cohort,
            out,
            made,
            seen,
            segmentation=wanted.segmentation,
            suffixes=wanted.suffixes,
            skull_stripped=wanted.skull_stripped,
            confidence=wanted.confidence,
            signer=signer,
            announce=partial(_note, record, line),
        )
    )
    log.info("%d cases of %s are in %s", len(cohort.cases), cohort.name, out)


def _note(record: Path, line: dict[str, Any]) -> None:
    """Record an export before its folder gets its name, so that the record is complete if the process is killed."""
    from medaug.files import atomic_write
    from medaug.locks import locked

    with locked(record.with_name(f".{record.name}.lock"), wait=True):
        text = record.read_text(encoding="utf-8") if record.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]  # drop one that was cut short
        new = json.dumps(line, ensure_ascii=False) + "\n"
        if new not in lines:
            with atomic_write(record) as temporary:
                temporary.write_text("".join([*lines, new]), encoding="utf-8")


if __name__ == "__main__":
    launch("export", main)
