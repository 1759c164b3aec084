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
from medaug.runs import claim, finish, finished, stage_folder

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MODEL_NODES = ("data", "task", "codec", "network", "process", "trainer")


def main(options: Options) -> None:
    """Train, or go on training, and leave `last.ckpt` and `manifest.json` in the run's folder."""
    folder = stage_folder(options, "train")
    growable = ("trainer.max_steps",) if options.resume else ()
    identity = part(options, *MODEL_NODES)
    if finished(folder) is None:  # before anything is written
        from medaug.data.cohorts import require_data
        from medaug.data.grid import check_options
        from medaug.diffusion.process import Process

        check_options(options.data)
        require_data(options.data)
        try:
            Process(**identity["process"])
        except ValueError as error:
            raise UserError(f"process: {error}") from error
    if not claim(folder, identity, options.overwrite, growable):
        return

    from medaug.data.cases import load_cases, read_grids
    from medaug.data.cohorts import find_cohort
    from medaug.data.preprocessing import common_scale, fit_preprocessing
    from medaug.networks.codecs import codec_stride
    from medaug.reporting.samples import samples_picture
    from medaug.training.checkpoint import Card
    from medaug.training.fit import fit
    from medaug.training.tasks import resolve_task

    manifest = find_cohort(options.data, folder.parent / "phantom")
    task = resolve_task(identity["task"], manifest.modalities, manifest.schema.num_classes)
    data = options.data
    cases = {split: manifest.split(split) for split in ("train", "val")}
    if options.task.target == "label":
        cases = {split: tuple(case for case in members if case.label is not None) for split, members in cases.items()}
    elif not data.unlabelled:
        cases["train"] = tuple(case for case in cases["train"] if case.label is not None)
    for split, members in cases.items():
        if not members:
            labelled = " of labelled scans" if options.task.target == "label" or not data.unlabelled else ""
            raise UserError(
                f"data={data.name}: the {split} split{labelled} is empty; add subjects or change its fraction"
            )
    stride = codec_stride(options.codec.name, options.network.spatial_dims)
    preprocessing = fit_preprocessing(
        read_grids(manifest, cases["train"], data.crop),
        data,
        multiple=max(stride) * 2 ** (len(options.network.channels) - 1),
    )
    cache, memory = folder.parent / "cache", data.cache == "ram"
    loaded = {split: load_cases(manifest, c, preprocessing, cache, memory) for split, c in cases.items()}
    card = Card(
        experiment=options.experiment,
        options=identity,
        preprocessing=preprocessing,
        schema=manifest.schema,
        modalities=manifest.modalities,
        subjects={split: sorted(manifest.subjects(split)) for split in cases},
        phantom=manifest.phantom,
        scale=common_scale([case.placement for case in loaded["train"]]),
    )
    manifest.save(folder / "manifest.json")

    def picture(step: int, batch: dict[str, Tensor], sample: Tensor) -> Path:
        path = folder / "pictures" / f"step_{step:06d}.png"
        title = f"step {step}" + (", phantoms" if manifest.phantom else "")
        samples_picture(batch, sample, task, manifest, path, title)
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
