"""Stage: learn p(image | mask) from the training split.

python -m medaug.train experiment=hippocampus [preset=cpu] [data=phantom] [trainer.max_steps=...] [init_from=FILE]
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.ownership import finished
from medaug.paths import stage_folder
from medaug.processes import process_rank
from medaug.runs import claim, command, finish
from medaug.training import requeue

log = logging.getLogger(__name__)

MODEL_NODES = ("data", "task", "codec", "network", "process", "trainer")


def main(options: Options) -> None:
    """Train, or resume a training; writes `last.ckpt`, `manifest.json` and, if samples are scored, `best.ckpt`.

    With `dry_run` it prints the plan and writes only the cohort's cache (and the phantoms, if data=phantom).
    """
    requeue.listen(first=process_rank() == 0)
    folder, base = stage_folder(options, "train"), Path(options.train.init_from) if options.train.init_from else None
    scored, taught = scores_samples(options), options.trainer.pseudo_labels
    helpers = (*(("segmenter",) if scored or taught else ()), *(("masks",) if scored else ()))
    identity = part(options, *MODEL_NODES, *helpers, *(("pseudo",) if taught else ()))
    if base is not None:
        from medaug.training.initial import base_digest

        identity["init_from"] = base_digest(base, folder)
    if options.train.dry_run or options.overwrite or finished(folder) is None:  # before anything is written or replaced
        from medaug.synthesis.scoring import check_scoring
        from medaug.synthesis.sources import load_masks
        from medaug.training.checks import check_training

        process = check_training(options)
        if scored:
            check_scoring(process, options.trainer)
            load_masks(options.masks)
    growable = ("trainer.max_steps",) if options.train.resume else ()
    if not options.train.dry_run and not claim(
        folder, identity | {"preset": options.preset}, options.overwrite, growable, keep="runs=DIR keeps both"
    ):
        return

    from medaug.pictures.samples import SamplePictures
    from medaug.synthesis.scoring import sample_score
    from medaug.training.experiment import Experiment
    from medaug.training.model_card import write_model_card

    experiment = Experiment.load(options, identity, folder, base)
    experiment.show_plan(scored)
    if options.train.dry_run:
        log.info("dry_run: nothing was trained")
        return
    if taught:
        from medaug.segmentation.teachers import with_soft_labels

        labelled = with_soft_labels(experiment.data, options, folder / "pseudo_labels.npz")
        experiment = replace(experiment, data=labelled)
    score = None
    if scored:
        first = process_rank() == 0
        score = sample_score(experiment.data, options.trainer, options.segmenter, options.masks, folder, measures=first)
    result = experiment.train(SamplePictures(folder, experiment.task, experiment.manifest), score)
    if process_rank() == 0:
        write_model_card(experiment.data.card, experiment.manifest, result, folder)
    finish(folder, result.to_dict())
    best = "" if result.best is None else f"; the one with the best samples (step {result.best['step']}) is best.ckpt"
    task = options.task
    later = "generate" if task.target == "image" and task.mask and not task.modalities else "predict"
    log.info("the model is %s%s; next: %s", folder / "last.ckpt", best, command(later, options))


def scores_samples(options: Options) -> bool:
    """Whether samples are scored during training; the model must generate all modalities from masks alone."""
    task = options.task
    pairs = task.target == "image" and task.mask and not task.modalities and task.degradation == "none"
    return options.trainer.score_every != 0 and pairs


if __name__ == "__main__":
    launch("train", main)
