"""Stage: pages to look at the pairs in a browser, and blinded reading sets.

python -m medaug.gallery experiment=hippocampus out=DIR [num=50]
python -m medaug.gallery experiment=hippocampus out=DIR blinded=true [num=20]
python -m medaug.gallery answers=answers.json key=DIR.key.json
"""

from __future__ import annotations

import logging
from pathlib import Path

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options
from medaug.paths import stage_folder
from medaug.runs import command

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write a gallery or a reading set to a folder that must not exist yet, or score the answers of a reader."""
    wanted = options.gallery
    if wanted.answers is not None:
        _score(Path(wanted.answers), wanted.key)
        return
    if wanted.out is None or not options.experiment:
        missing = "out=DIR" if options.experiment else "experiment=NAME"
        raise UserError(f"{missing} is missing", "name the experiment, and a folder that does not exist yet")

    from medaug.cohort.manifest import Manifest
    from medaug.synthesis.pairs import Pairs
    from medaug.viewing.gallery import Gallery
    from medaug.viewing.pages import PAGE

    pairs = Pairs.load(stage_folder(options, "generate"), command("generate", options))
    cohort = Manifest.load(stage_folder(options, "train") / "manifest.json")
    gallery, out = Gallery(pairs, cohort), Path(wanted.out)
    if wanted.blinded:
        key = gallery.write_reading_set(out, wanted.num, wanted.seed)
        log.info("open %s in a browser; %s says which images are synthetic: keep it from the readers", out / PAGE, key)
    else:
        number = gallery.write(out, wanted.num)
        log.info("%d pairs are in %s; open it in a browser", number, out / PAGE)


def _score(answers: Path, key: str | None) -> None:
    from medaug.viewing.reading import score

    if key is None:
        raise UserError("key=FILE is missing", "give the file that was written beside the reading set")
    for line in score(answers, key).lines():
        log.info("%s", line)


if __name__ == "__main__":
    launch("gallery", main)
