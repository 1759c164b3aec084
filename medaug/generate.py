"""Stage: write synthetic image-mask pairs.

python -m medaug.generate experiment=hippocampus num=200 [guidance_scale=1.5] [sampler=dpmpp_2m] [masks=deformed]
    [screen=all]
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.paths import stage_folder
from medaug.processes import process_rank
from medaug.runs import KEEP_SETS, claim, command, continues, finish, join, trained_checkpoint

if TYPE_CHECKING:
    from medaug.synthesis.job import Job
    from medaug.synthesis.recipes import Recipes

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write pairs, their provenance, a manifest and a contact sheet; with `strip`, also a picture of the denoising.

    With `screen`, pairs that fail a rule are tried again, and `screening.json` says what was rejected and why. The disk
    space and time needed are estimated first. With `dry_run` nothing is generated, and only the cohort's cache is
    written.

    Processes started by torchrun or srun share the pairs without waiting for each other; the first that finds all pairs
    recorded writes the manifest and the contact sheet.
    """
    checkpoint, folder = trained_checkpoint(options), stage_folder(options, "generate")

    from medaug.synthesis.job import Job

    job = Job.load(checkpoint, options, folder.parent / "cache")
    identity = part(options, "generate", "masks", "sampler") | job.identity
    if options.screen.rules:  # without rules, the identity is that of runs made before screening existed
        identity |= part(options, "screen", "segmenter", "scoring.lesions")
    growable = ("generate.num",)
    if options.generate.dry_run:
        job.estimate(_recipes(job), folder, continues(folder, identity, growable))
        log.info("dry_run: nothing was generated")
        return
    work = claim(folder, identity, options.overwrite, growable, keep=KEEP_SETS)
    if not work and not options.generate.strip:
        return
    join(folder, identity)
    recipes = _recipes(job)
    if options.generate.strip and process_rank() == 0:
        job.show_denoising(recipes, folder / "strip")
        log.info("%s and .gif show how pair 0 emerges from noise", folder / "strip.png")
    if work and (summary := _make(job, recipes, folder)) is not None:
        finish(folder, summary)
        log.info("%d pairs are in %s; next: %s", summary["pairs"], folder, command("audit", options))


def _recipes(job: Job) -> Recipes:
    recipes = job.recipes()
    recipes.source_of(job.generate.num - 1)  # fails now if hosts or masks would be used too often
    return recipes


def _make(job: Job, recipes: Recipes, folder: Path) -> dict[str, Any] | None:
    """Make the pairs if the disk has room for them; if interrupted, say how many exist and how to make the rest."""
    if process_rank() == 0:
        job.estimate(recipes, folder, True)
    try:
        return job.make(recipes, folder)
    except KeyboardInterrupt:
        log.warning("%s, and none is lost: the same command makes the others", job.progress(folder))
        raise


if __name__ == "__main__":
    launch("generate", main)
