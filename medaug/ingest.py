"""Stage: turn a folder of scans into a checked manifest.

python -m medaug.ingest root=DIR out=FILE.json [layout=auto] [subject_pattern='(.*)_visit']
python -m medaug.ingest root=TREE layout=dicom rules=rules.yaml out=FILE.json
python -m medaug.ingest download=Task04_Hippocampus to=DIR
python -m medaug.ingest withdraw=SUBJECT [out=FILE.json] [runs=runs]
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import DataOptions, IngestOptions, Options

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Read a folder, split it by subject, list all problems, and write the manifest if there are no errors."""
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
    from medaug.ingestion.refusals import check_report, refuse_existing

    refuse_existing(out)
    if wanted.report is not None:
        check_report(Path(wanted.report), out)

    from medaug.ingestion.job import Job

    Job.plan(wanted.root, out, wanted, data).run()
    log.info("the manifest is %s; next: medaug train experiment=cohort data.manifest=%s", out, shlex.quote(str(out)))


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
