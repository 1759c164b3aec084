"""Stage: hand the synthetic pairs to another tool.

python -m medaug.export experiment=hippocampus format=msd out=DIR
python -m medaug.export experiment=hippocampus format=nnunet out=nnUNet_raw/Dataset501_Hippocampus
"""

from __future__ import annotations

import logging
from pathlib import Path

from medaug.config import launch
from medaug.errors import UserError
from medaug.options import Options
from medaug.runs import stage_folder

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write the pairs in the layout that was asked for, to a folder that must not exist yet."""
    from medaug.imaging.writers import WRITERS
    from medaug.synthesis.generation import finished_pairs

    wanted = options.export
    if wanted.out is None:
        raise UserError("out=DIR is missing; give a folder that does not exist yet")
    if wanted.format not in WRITERS:
        raise UserError(f"format={wanted.format}: not one of {', '.join(WRITERS)}")
    pairs = finished_pairs(stage_folder(options, "generate"))
    WRITERS[wanted.format](pairs.manifest, Path(wanted.out))
    log.info("%d pairs are in %s", len(pairs.manifest.cases), wanted.out)


if __name__ == "__main__":
    launch("export", main)
