"""Stage: learn p(image | mask) from the training split.

python -m medaug.train experiment=hippocampus [preset=cpu] [data=phantom] [trainer.max_steps=...]
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.config import launch, part
from medaug.errors import UserError
from medaug.options import Options
from medaug.runs import claim, finish, finished, process_rank, stage_folder

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MODEL_NODES = ("data", "codec", "network", "process", "trainer")


def main(options: Options) -> None:
    """Train, or go on training, and leave `last.ckpt` and `manifest.json` in the run's folder.

    With `dry_run`, print the plan and leave no more than the cohort's cache (and phantoms, where it is phantoms).
    """
    folder = stage_folder(options, "train")
    growable = ("trainer.max_steps",) if options.resume else ()
    identity = part(options, *MODEL_NODES)
    if options.dry_run or finished(folder) is None:  # before anything is written
        from medaug.data.cohorts import require_data
        from medaug.data.grid import check_options
        from medaug.diffusion.process import Process
        from medaug.training.hardware import check_trainer

        check_trainer(options.trainer)
        check_options(options.data)
        require_data(options.data)
        try:
            Process(**identity["process"])
        except ValueError as error:
            raise UserError(f"process: {error}") from error
    if not options.dry_run and not claim(folder, identity, options.overwrite, growable):
        return

    from medaug.data.cases import load_cases, read_grids
    from medaug.data.cohorts import find_cohort
    from medaug.data.preprocessing import fit_preprocessing
    from medaug.networks.codecs import codec_stride
    from medaug.reporting.figures import comparison_picture
    from medaug.training.checkpoint import Card
    from medaug.training.fit import fit
    from medaug.training.plan import make_plan

    manifest = find_cohort(options.data, folder.parent / "phantom")
    cases = {split: manifest.split(split) for split in ("train", "val")}
    for split, members in cases.items():
        if not members:
            raise UserError(
                f"data={options.data.name}: the {split} split is empty; add subjects or change its fraction"
            )
    data = options.data
    stride = codec_stride(options.codec.name, options.network.spatial_dims)
    preprocessing = fit_preprocessing(
        read_grids(manifest, cases["train"], data.crop),
        data,
        multiple=max(stride) * 2 ** (len(options.network.channels) - 1),
    )
    card = Card(
        experiment=options.experiment,
        options=identity,
        preprocessing=preprocessing,
        schema=manifest.schema,
        modalities=manifest.modalities,
        subjects={split: sorted(manifest.subjects(split)) for split in cases},
        phantom=manifest.phantom,
    )
    cache, memory = folder.parent / "cache", data.cache == "ram"
    loaded = {split: load_cases(manifest, c, preprocessing, cache, memory) for split, c in cases.items()}
    if process_rank() == 0 and (options.dry_run or not (folder / "last.ckpt").exists()):
        for line in make_plan(card, options.trainer, loaded["train"], loaded["val"]).lines():
            log.info(line)
    if options.dry_run:
        log.info("dry_run: nothing was trained")
        return
    manifest.save(folder / "manifest.json")

    def picture(step: int, label: Tensor, sample: Tensor, real: Tensor) -> Path:
        path = folder / "pictures" / f"step_{step:06d}.png"
        rows = [
            (f"{name}, pair {i + 1}", label[i].numpy(), sample[i, m].numpy(), real[i, m].numpy())
            for i in range(len(label))
            for m, name in enumerate(manifest.modalities)
        ]
        title = f"step {step}" + (", phantoms" if manifest.phantom else "")
        comparison_picture(rows[:4], path, title, manifest.schema.foreground, window=(-1.0, 1.0))
        return path

    summary = fit(
        card,
        loaded["train"],
        loaded["val"],
        folder,
        options.trainer,
        options.logger.name,
        picture,
    )
    finish(folder, summary)
    log.info("the model is %s", folder / "last.ckpt")


if __name__ == "__main__":
    launch("train", main)
