"""Stage: measure whether the images obey their masks.

python -m medaug.audit experiment=hippocampus [guidance_scales=[0,1,3]]
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.processes import choose_device
from medaug.runs import claim, command, finish, stage_folder, trained_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PICTURED = 3


def main(options: Options) -> None:
    """Train the judge, apply it to synthetic and real images, and write faithfulness.json with its pictures."""
    from medaug.comparison.guard import guarded_cohort
    from medaug.errors import UserError
    from medaug.files import file_sha256
    from medaug.synthesis.pairs import Pairs
    from medaug.training.checkpoint import read_checkpoint

    folder = stage_folder(options, "audit")
    checkpoint = trained_checkpoint(options)
    digest = file_sha256(checkpoint)
    pairs = Pairs.load(stage_folder(options, "generate"), command("generate", options))
    if any(record["checkpoint"] != digest for record in pairs.records):
        raise UserError(
            f"{checkpoint}: trained again since the pairs were made, or they were made with another checkpoint=; "
            "generate them again (overwrite=true)"
        )
    if len(pairs.records) < 2:
        raise UserError(f"{pairs.manifest.root}: the audit needs at least two pairs; generate more (num=2)")
    card, _ = read_checkpoint(checkpoint)
    cohort, content = guarded_cohort(stage_folder(options, "train"), pairs, card, digest)
    identity = part(options, "audit", "segmenter")
    identity |= {"checkpoint": digest, "pairs": pairs.digest, "cohort": content}
    if not claim(folder, identity, options.overwrite, recorded=("cohort",)):
        return

    import numpy as np

    from medaug.cohort.provenance import Recipe
    from medaug.csv_files import write_csv
    from medaug.data.cases import load_cases
    from medaug.data.contents import refuse_copies
    from medaug.evaluation.baseline import trivial_dice
    from medaug.evaluation.faithfulness import agreement, derangement
    from medaug.evaluation.scores import MEAN_FOREGROUND
    from medaug.evaluation.statistics import Interval, bootstrap_mean
    from medaug.evaluation.texture import mean_absolute_gradient
    from medaug.files import write_json
    from medaug.pictures.figures import guidance_picture, save_figure
    from medaug.segmentation.segmenter import Diet, load_segmenter, save_segmenter, segment, train_segmenter
    from medaug.synthesis.generation import sample_images
    from medaug.training.checkpoint import load_model

    settings = options.audit
    card, model = load_model(checkpoint, choose_device())
    num_classes = cohort.schema.num_classes
    cache = folder.parent / "cache"
    real = {
        split: load_cases(cohort, [c for c in cohort.split(split) if c.label is not None], card.preprocessing, cache)
        for split in ("train", "val")
    }
    if not real["val"]:
        raise UserError(
            f"{cohort.root}: no labelled validation scan to hold the judge against; raise data.val_fraction"
        )
    synthetic = load_cases(pairs.manifest, pairs.manifest.cases, card.preprocessing, cache)

    refuse_copies(real | {"synthetic": synthetic})
    weights = folder / "judge.pt"
    if not weights.exists():
        steps, seed = settings.judge_steps, settings.seed
        save_segmenter(
            train_segmenter(Diet(real["train"]), num_classes, options.segmenter, steps, seed, "judge"),
            weights,
        )
    judge = load_segmenter(weights, len(cohort.modalities), num_classes, options.segmenter.channels)

    rows: list[tuple[str, str, str, float]] = []

    def measured(
        name: str, judged: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]], cases: Sequence[Any]
    ) -> Interval:
        values = agreement(judged, masks, cohort.schema)
        rows.extend((name, c.case.name, c.case.subject, v) for c, v in zip(cases, values, strict=True))
        return bootstrap_mean(values, [c.case.subject for c in cases], settings.seed)

    def as_plain(interval: Interval) -> dict[str, Any]:
        low, high = plain(interval.low), plain(interval.high)
        return {"mean": interval.mean, "low": low, "high": high, "n": interval.n}

    def plain(value: float) -> float | None:
        # JSON has no NaN, which the bounds are where one subject is all there is.
        return None if math.isnan(value) else value

    judged = [segment(judge, np.array(case.image)) for case in synthetic]
    masks = [np.array(case.label) for case in synthetic]
    judged_val = [segment(judge, np.array(case.image)) for case in real["val"]]
    on_real = measured("real_validation", judged_val, [np.array(c.label) for c in real["val"]], real["val"])
    on_synthetic = measured("synthetic", judged, masks, synthetic)
    strangers = derangement([case.case.subject for case in synthetic], settings.seed)
    on_shuffled = measured("shuffled", judged, [masks[i] for i in strangers], synthetic)

    recipes = {record["name"]: Recipe.from_mapping(record) for record in pairs.records}
    swept = synthetic[: settings.guidance_num]
    batch = settings.batch_size
    guidance, shown = [], []
    for scale in settings.guidance_scales:
        log.info("guidance scale %g, %d pairs", scale, len(swept))
        asked = recipes
        if scale == 0:  # what the mask is to be compared with must not hear of it
            asked = {
                name: replace(recipe, guidance_interval=None, guidance_rescale=0.0, negative_classes=[])
                for name, recipe in recipes.items()
            }
        images = np.concatenate(
            [
                sample_images(
                    model, card.schema, [asked[c.case.name] for c in some], [np.array(c.label) for c in some], scale
                )
                for some in (swept[i : i + batch] for i in range(0, len(swept), batch))
            ]
        )
        name = f"guidance_{scale:g}"
        result = measured(name, [segment(judge, image) for image in images], masks[: len(swept)], swept)
        guidance.append({"guidance_scale": scale, **as_plain(result)})
        shown.append(images[:PICTURED, 0])

    captions = [f"pair {recipes[case.case.name].index}, {cohort.modalities[0]}" for case in swept[:PICTURED]]
    picture_rows = [(caption, masks[i], [images[i] for images in shown]) for i, caption in enumerate(captions)]
    title = "Same seed and mask, growing guidance" + (" (phantoms, not patients)" if cohort.phantom else "")
    classes = cohort.schema.foreground
    path = folder / "guidance.png"
    figure = guidance_picture(picture_rows, settings.guidance_scales, title, classes, window=(-1.0, 1.0))
    save_figure(figure, path)

    def sharpness(cases: Sequence[Any]) -> float:
        return float(np.mean([mean_absolute_gradient(volume) for case in cases for volume in case.image]))

    labels, subjects = [np.asarray(case.label) for case in real["train"]], [case.case.subject for case in real["train"]]
    floor = trivial_dice(labels, subjects, cohort.schema)[MEAN_FOREGROUND]
    learned = on_real.mean > floor
    summary = {
        "smoke": "smoke" in (options.preset, card.preset),
        "real_validation": as_plain(on_real),
        "synthetic": as_plain(on_synthetic),
        "shuffled": as_plain(on_shuffled),
        "floor": floor,
        "ratio": on_synthetic.mean / on_real.mean if learned else None,
        "ratio_low": plain(on_synthetic.low / on_real.mean) if learned else None,
        "guidance": guidance,
        "judge": {
            "steps": settings.judge_steps,
            "seed": settings.seed,
            "num_training_cases": len(real["train"]),
        },
        "sharpness": {"real": sharpness(real["val"]), "synthetic": sharpness(synthetic)},
    }
    write_csv(folder / "faithfulness.csv", ("images", "case", "subject", "dice"), rows)
    write_json(folder / "faithfulness.json", summary)
    finish(
        folder, {"pairs": len(synthetic)}, [folder / "faithfulness.json", folder / "faithfulness.csv", path, weights]
    )
    log.info(
        "the judge's mean foreground Dice: %.3f [%.3f, %.3f] on %d synthetic images, %.3f on %d real validation "
        "images, %.3f with the masks shuffled; %s",
        on_synthetic.mean,
        on_synthetic.low,
        on_synthetic.high,
        on_synthetic.n,
        on_real.mean,
        on_real.n,
        on_shuffled.mean,
        folder / "faithfulness.json",
    )
    if not learned:
        log.warning(
            "the judge's Dice on real images is not above the %.3f of a trivial baseline: it has learned nothing, so "
            "its numbers say nothing about the images; raise judge_steps",
            floor,
        )


if __name__ == "__main__":
    launch("audit", main)
