"""Stage: learn p(image | mask) from the training split.

python -m medaug.train experiment=hippocampus [preset=cpu] [data=phantom] [trainer.max_steps=...] [init_from=FILE]
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.config import part
from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options, TrainerOptions
from medaug.processes import process_rank
from medaug.runs import claim, finish, finished, stage_folder
from medaug.training import requeue

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LESS_MEMORY = "lower trainer.batch_size (accumulate makes up for it) or set network.gradient_checkpointing=true"
MODEL_NODES = ("data", "task", "codec", "network", "process", "trainer")


def main(options: Options) -> None:
    """Train, or go on training, and leave `last.ckpt`, on request `best.ckpt`, and `manifest.json` in its folder.

    With `dry_run`, print the plan and leave no more than the cohort's cache (and phantoms, where it is phantoms).
    """
    requeue.listen(first=process_rank() == 0)
    folder = stage_folder(options, "train")
    drawn = options.task
    pairs = drawn.target == "image" and drawn.mask and not drawn.modalities and drawn.degradation == "none"
    scored = options.trainer.score_every != 0 and pairs
    base = Path(options.train.init_from) if options.train.init_from else None
    identity = part(options, *MODEL_NODES, *(("segmenter", "masks") if scored else ()))
    if base is not None:
        identity["init_from"] = _digest(base, folder)
    if options.train.dry_run or options.overwrite or finished(folder) is None:  # before anything is written or replaced
        _check(options, scored)
    growable = ("trainer.max_steps",) if options.train.resume else ()
    if not options.train.dry_run and not claim(
        folder, identity, options.overwrite, growable, keep="runs=DIR keeps both"
    ):
        return

    from torch import OutOfMemoryError

    from medaug.data.attributes import fit_attributes
    from medaug.data.cases import load_cases, read_grids
    from medaug.data.cohorts import find_cohort
    from medaug.data.contents import case_contents, refuse_copies, refuse_shared
    from medaug.data.preprocessing import common_scale, fit_preprocessing
    from medaug.networks.codecs import codec_stride
    from medaug.pictures.figures import save_figure
    from medaug.pictures.samples import samples_picture
    from medaug.training.checkpoint import Card
    from medaug.training.fit import fit
    from medaug.training.initial import read_base
    from medaug.training.plan import make_plan
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
    stride = codec_stride(options.codec, options.network.spatial_dims)
    grids = read_grids(manifest, cases["train"], data.crop)
    affines = [affine for _, affine in grids]
    attributes = fit_attributes(data.attributes, list(zip(cases["train"], affines, strict=True)))
    halved = 2 ** (len(options.network.channels) - 1)
    preprocessing = fit_preprocessing(
        grids,
        data,
        multiple=(
            stride[0] * halved,
            stride[1] * halved,
            stride[2] * halved if options.network.spatial_dims == 3 else 1,
        ),
    )
    cache, memory = folder.parent / "cache", data.cache == "ram"
    loaded = {split: load_cases(manifest, c, preprocessing, cache, memory) for split, c in cases.items()}
    # Test scans may lie elsewhere; the benchmark reads all of them.
    here = [case for case in manifest.split("test") if all(path.exists() for path in manifest.files(case))]
    contents = case_contents(manifest, [*cases["train"], *cases["val"], *here], cache)
    refuse_shared(manifest, contents)
    refuse_copies(loaded)
    card = Card(
        experiment=options.experiment,
        options=identity,
        preprocessing=preprocessing,
        schema=manifest.schema,
        modalities=manifest.modalities,
        subjects={split: sorted({case.subject for case in members}) for split, members in cases.items()},
        phantom=manifest.phantom,
        attributes=attributes,
        base=None if base is None else read_base(base, manifest),
        preset=options.preset,
        scale=common_scale([case.placement for case in loaded["train"]]),
        contents={case.name: contents[case.name] for members in cases.values() for case in members},
    )
    if task.mask and options.trainer.condition_dropout == 0 and all(case.label is not None for case in loaded["train"]):
        log.warning(
            "trainer.condition_dropout=0 and every scan has a label: the null condition is not trained, so guidance "
            "means nothing; generate with guidance_scale=1"
        )
    attributes.warn_of_unknown((c.case, c.affine) for split in loaded.values() for c in split)
    if process_rank() == 0 and (options.train.dry_run or not (folder / "last.ckpt").exists()):
        try:
            for line in make_plan(card, options.trainer, loaded["train"], loaded["val"], scored).lines():
                log.info(line)
        except OutOfMemoryError as error:
            if options.train.dry_run:
                raise UserError(f"a step, not compiled or split, does not fit the device; {LESS_MEMORY}") from error
            log.warning("no plan: a step, not compiled or split, does not fit the device; trying")
    if options.train.dry_run:
        log.info("dry_run: nothing was trained")
        return
    if process_rank() == 0:
        manifest.save(folder / "manifest.json")

    score = None
    if scored:
        from medaug.synthesis.scoring import sample_score

        trainer, first = options.trainer, process_rank() == 0
        score = sample_score(
            card, loaded["train"], loaded["val"], trainer, options.segmenter, options.masks, folder, measures=first
        )

    def picture(step: int, batch: dict[str, Tensor], sample: Tensor, made: str = "synthetic") -> Path:
        prefix = "codec_" if made == "reconstruction" else ""
        path = folder / "pictures" / f"{prefix}step_{step:06d}.png"
        title = f"step {step}" + (", phantoms" if manifest.phantom else "")
        save_figure(samples_picture(batch, sample, task, manifest, title, made), path)
        return path

    try:
        summary = fit(
            card,
            loaded["train"],
            loaded["val"],
            folder,
            options.trainer,
            options.logger.name,
            picture=picture,
            reconstruction=partial(picture, made="reconstruction"),
            init_from=base,
            score=score,
        )
    except OutOfMemoryError as error:
        raise UserError(f"{folder}: the device is out of memory; {LESS_MEMORY}") from error
    finish(folder, summary)
    best = f"; the best by its samples (step {summary['best_step']}) is best.ckpt" if "best_step" in summary else ""
    log.info("the model is %s%s", folder / "last.ckpt", best)


def _digest(base: Path, folder: Path) -> str:
    """SHA-256 of the checkpoint that a training in `folder` is to begin from."""
    from medaug.files import file_sha256

    if not base.is_file() or folder.resolve() in base.resolve().parents:
        reason = "lies in the folder of this very run" if base.is_file() else "no such file"
        raise UserError(f"init_from={base}: {reason}; give the last.ckpt of another training")
    return file_sha256(base)


def _check(options: Options, scored: bool) -> None:
    """Refuse what cannot be trained while nothing has been written for its sake."""
    from medaug.data.cohorts import require_data
    from medaug.data.grid import check_options
    from medaug.diffusion.process import Process
    from medaug.networks.codecs import check_codec
    from medaug.synthesis.scoring import check_scoring
    from medaug.training.hardware import check_processes, check_trainer

    if options.network.name == "controlnet" and not options.train.init_from:
        raise UserError(
            "network=controlnet: needs a base; train one with task=unconditional, then give its last.ckpt "
            "as init_from=FILE"
        )
    check_trainer(options.trainer)
    if not options.train.dry_run:
        check_processes(options.trainer)
    _check_dropout(options)
    if options.masks.checkpoint is not None:
        raise UserError("masks.checkpoint: while a model trains, no mask generator is used; leave it out")
    check_options(options.data)
    check_codec(options.codec, taken=options.train.init_from is not None)
    require_data(options.data)
    try:
        process = Process(**part(options, "process")["process"])
    except ValueError as error:
        raise UserError(f"process: {error}") from error
    if scored:
        check_scoring(process, options.trainer)
        if options.masks.source == "generated":
            raise UserError(
                "masks=generated: while a model trains, its samples are scored on deformed or real masks; leave it "
                "out, or set trainer.score_every=0"
            )


def _check_dropout(options: Options) -> None:
    """Refuse to hide what the network is not told anyway."""
    trainer, task, usual = options.trainer, options.task, TrainerOptions()
    for key, told, what in (
        ("class_dropout", task.mask, "task.mask=false, so there are no classes"),
        ("image_dropout", task.given or task.degradation != "none", "this task is given no images"),
        ("attribute_dropout", options.data.attributes, "data.attributes names none"),
    ):
        if not told and (share := getattr(trainer, key)) != getattr(usual, key):
            raise UserError(f"trainer.{key}={share:g}: has no effect, {what}; leave it out")


if __name__ == "__main__":
    launch("train", main)
