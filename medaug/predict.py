"""Stage: apply a trained model to real scans.

python -m medaug.predict experiment=brats split=test [num_samples=8]
python -m medaug.predict experiment=brats manifest=new_scans.json
"""

from __future__ import annotations

import logging
from pathlib import Path

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.paths import stage_folder
from medaug.runs import claim, finish, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write the model's predictions for each scan, their scores if the truth is known, and a picture."""
    from medaug.prediction.job import Job

    settings = options.predict
    job = Job.load(trained_checkpoint(options), options, stage_folder(options, "train").parent / "cache")
    name = settings.name or (Path(settings.manifest).stem if settings.manifest else settings.split or "val")
    folder = stage_folder(options, "predict") / name
    identity = part(options, "predict", "sampler", "scoring") | job.identity
    if not claim(folder, identity, options.overwrite, recorded=("contents",), keep="name=NAME keeps both"):
        return
    predictions = job.run(folder, f"{options.experiment}, {name}")
    scored = predictions.save(folder, settings.seed)
    finish(folder, {"scans": len(predictions.records), "checkpoint": job.checkpoint})
    note = "" if scored else "; they have no scores, because the truth is not known"
    log.info("predictions for %d scans are in %s%s", len(predictions.records), folder, note)


if __name__ == "__main__":
    launch("predict", main)
