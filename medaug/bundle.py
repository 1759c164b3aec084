"""Stage: write the generator as a MONAI bundle, which runs without medaug.

python -m medaug.bundle experiment=hippocampus out=DIR
"""

from __future__ import annotations

import logging
from pathlib import Path

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write the bundle to a folder that must not exist yet."""
    if options.bundle.out is None:
        raise UserError("out=DIR is missing", "give a folder that does not exist yet")
    checkpoint, out = trained_checkpoint(options), Path(options.bundle.out)

    from medaug.bundling.writer import write_bundle

    write_bundle(checkpoint, out)
    log.info("%s runs with: python -m monai.bundle run --config_file %s/configs/inference.json", out, out)
    log.info("masks are read from %s; see docs/howto/bundle.md", out / "masks")


if __name__ == "__main__":
    launch("bundle", main)
