"""Stage: files to a checked manifest.

python -m medaug.ingest root=DIR out=FILE.json [layout=auto] [subject_pattern='(.*)_visit']
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medaug.config import launch
from medaug.errors import UserError
from medaug.options import Options

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Read a folder, split it by subject, say everything that is wrong, and write the manifest if nothing is."""
    wanted = options.ingest
    if wanted.root is None or wanted.out is None:
        raise UserError("root=DIR and out=FILE.json are needed: the folder with the scans, and the manifest to write")
    out = Path(wanted.out)
    if out.suffix != ".json":
        raise UserError(f"out={out}: a manifest is a .json file")
    if out.exists():
        raise UserError(f"out={out}: exists already; remove it or give another name")

    from medaug.data.cohorts import split_cohort
    from medaug.imaging.layouts import read_layout
    from medaug.imaging.preflight import check

    manifest = split_cohort(read_layout(wanted.root, wanted.layout), wanted)
    if wanted.name is not None:
        manifest = replace(manifest, name=wanted.name)
    findings = check(manifest) if wanted.check else []
    for finding in findings:
        log.log(logging.ERROR if finding.severity == "error" else logging.WARNING, "%s", finding)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise UserError(
            f"{wanted.root}: {errors} error(s) in {len(manifest.cases)} cases, listed above; no manifest written"
        )
    manifest.save(out)
    counts = ", ".join(f"{len(manifest.subjects(s))} {s}" for s in ("train", "val", "test"))
    log.info(
        "%d cases of %s subjects (%s) are in %s",
        len(manifest.cases),
        len({c.subject for c in manifest.cases}),
        counts,
        out,
    )


if __name__ == "__main__":
    launch("ingest", main)
