"""Options of the synthesis: the sampler, the masks, the pairs and their screening."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.declaration import (
    Items,
    Range,
    above,
    added_parameters,
    at_least,
    between,
    not_with,
    one_of,
    only_with,
    option,
    path_option,
    set_option,
)

_DEFORMED = (only_with("masks.source", "deformed", "mixed"),)
_COMPOSED = (only_with("masks.source", "composed", "mixed"),)
_MOVED = (only_with("masks.source", "deformed", "composed", "mixed"),)
_POPULATION = (only_with("masks.source", "population", "mixed"),)
_EDITED = (only_with("generate.mode", "insert", "remove"),)
_GUIDED = (not_with("generate.guidance_scale", 1.0),)
_SCREENED = (only_with("screen.rules"),)
_POSITIVE = at_least(1)


@dataclass
class SamplerOptions:
    """The sampler, which turns noise into an image."""

    name: str = option("the sampler", "dpmpp_2m", choices=one_of(table="samplers"))
    num_inference_steps: int = option(
        "steps, each one evaluation of the network (heun: two, except the last)", 8, limits=_POSITIVE
    )
    eta: float = option(
        "0: deterministic; 1: as noisy as ddpm",
        0.0,
        limits=between(0, 1),
        applies_when=(only_with("sampler.name", "ddim"),),
    )
    spacing: str = option(
        "how the steps are spaced in time; karras cannot start from pure noise",
        "trailing",
        choices=one_of(table="spacings"),
    )
    overlap: float | None = option(
        "for models trained on patches: the share of each window that the next one overlaps; null: half",
        None,
        limits=Range(least=0, below=1),
        identity=None,
    )
    parameters: list[str] = added_parameters("sampler", "strength:0.5")


@dataclass
class MasksOptions:
    """Where the masks of synthetic pairs come from: training masks, or shapes learned from them."""

    source: str = option(
        "how masks are made; mixed: by the sources in masks.mix",
        "deformed",
        choices=one_of(table="mask_sources"),
    )
    checkpoint: str | None = path_option(
        "checkpoint of a training with task=mask_generator",
        identity=False,
        applies_when=(only_with("masks.source", "generated", "mixed"),),
    )
    mix: list[str] = option(
        "sources and their weights, as in [real:0.2,deformed:0.5,population:0.3]",
        [],
        applies_when=(only_with("masks.source", "mixed"),),
        identity=None,
    )
    max_per_host: int | None = option("most pairs of one host; null: any number", None, limits=_POSITIVE, identity=None)
    max_per_mask: int | None = option(
        "most pairs with the same unchanged training mask; null: any number",
        None,
        limits=_POSITIVE,
        applies_when=(only_with("masks.source", "real", "mixed"),),
        identity=None,
    )
    rotation: float = option(
        "standard deviation of the angle about each axis, degrees", 6.0, limits=at_least(0), applies_when=_MOVED
    )
    scaling: float = option(
        "standard deviation of the logarithm of the scale", 0.06, limits=at_least(0), applies_when=_MOVED
    )
    translation: float = option(
        "standard deviation of the shift along each axis, voxels", 1.0, limits=at_least(0), applies_when=_DEFORMED
    )
    elastic: float = option(
        "standard deviation of the smooth displacement, voxels", 1.2, limits=at_least(0), applies_when=_DEFORMED
    )
    elastic_smoothness: float = option(
        "correlation length of that displacement, voxels", 8.0, limits=at_least(0), applies_when=_DEFORMED
    )
    lesions: list[str] = option(
        "classes that make up a lesion", [], items=Items(distinct=True), applies_when=_COMPOSED, identity=None
    )
    replace: bool = option(
        "remove the lesions that the host's mask has itself", True, applies_when=_COMPOSED, identity=None
    )
    spread: float = option(
        "how far shapes may deviate from the mean shape along each principal component, standard deviations",
        2.5,
        limits=above(0),
        applies_when=_POPULATION,
        identity=None,
    )
    volume_range: list[float] = option(
        "quantiles of the training masks' volumes between which volumes are drawn; [0,0.1] asks for small ones",
        [0.0, 1.0],
        limits=between(0, 1),
        items=Items(count=2, ascending=True),
        applies_when=_POPULATION,
        identity=None,
    )
    volume_scale: list[float] | None = option(
        "factors between which one is drawn to multiply a drawn volume; [0.6,0.9] asks for volumes 10 to 40% smaller, "
        "also beyond those of the training masks; null: none",
        None,
        limits=between(0.1, 10),
        items=Items(count=2, ascending=True),
        applies_when=_POPULATION,
        identity=None,
    )
    mirror: bool = option(
        "mirror half of the masks left to right; refused if a label names a side",
        False,
        applies_when=(only_with("masks.source", "deformed", "population", "composed", "mixed"),),
        identity=None,
    )


@dataclass
class GenerateOptions:
    """How many pairs, and how strongly the images follow their masks."""

    num: int = option("image-mask pairs to write", 64, limits=_POSITIVE)
    name: str | None = set_option()
    mode: str = option(
        "pairs: whole images; insert: a lesion into each host's real scan; remove: the host's lesions from it",
        "pairs",
        choices=one_of("pairs", "insert", "remove"),
        identity=None,
    )
    margin: int = option(
        "width of the band around the changed voxels in which sample and scan are blended, voxels of the model's grid",
        3,
        limits=at_least(0),
        applies_when=_EDITED,
        identity=None,
    )
    box: list[int] | None = option(
        "sides of a box around each lesion, in voxels of the model's size, anywhere in the scan; only the box is in "
        "memory and generated; null: the model's grid",
        None,
        limits=_POSITIVE,
        items=Items(count=3),
        applies_when=_EDITED,
        identity=None,
    )
    resample: int = option(
        "how many times each step is repeated, for a seamless transition; 1 is fastest",
        4,
        limits=_POSITIVE,
        applies_when=_EDITED,
        identity=None,
    )
    guidance_scale: float = option(
        "classifier-free guidance: 0 ignores the mask, 1 is the plain conditional model", 2.0, limits=at_least(0)
    )
    guidance_interval: list[float] | None = option(
        "apply guidance only at times in this interval, where 0 is clean and 1 is noise; null: always",
        None,
        limits=between(0, 1),
        items=Items(count=2, ascending=True),
        applies_when=_GUIDED,
    )
    guidance_rescale: float = option(
        "moves the contrast of guided images back to the plain conditional model's: 0 not at all, 1 fully",
        0.0,
        limits=between(0, 1),
    )
    negative_classes: list[str] = option(
        "guide away from the same mask without these classes; empty: plain guidance", [], applies_when=_GUIDED
    )
    attributes: list[str] = option("attributes to use instead of the host's own, as in [site:A,grade:2]", [])
    seed: int = option("root seed, from which the seed of every pair is derived", 0)
    batch_size: int = option("pairs sampled together; does not change them", 4, limits=_POSITIVE, identity=False)
    strip: int = option(
        "number of pictures that show how the first pair develops from noise; 0: none",
        0,
        limits=at_least(0),
        applies_when=(only_with("generate.mode", "pairs"),),
        identity=False,
    )
    dry_run: bool = option("print how much disk and time the pairs need, and stop", False, identity=False)


@dataclass
class ScreenOptions:
    """Which synthetic pairs are kept: the rules that each must pass, fitted on real scans."""

    rules: list[str] = option(
        "rules that every pair must pass; empty: pairs are not screened",
        [],
        choices=one_of(table="screening_rules"),
        items=Items(distinct=True),
    )
    retries: int = option(
        "how many times a rejected pair is sampled again, with another seed, before it is given up",
        4,
        limits=at_least(0),
        applies_when=_SCREENED,
    )
    keep_rejected: bool = option(
        "also write the rejected pairs, to runs/EXP/synthetic/rejected", False, identity=False, applies_when=_SCREENED
    )
    dice_quantile: float = option(
        "faithfulness: the minimum Dice is this quantile of the Dice of real validation scans",
        0.1,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    intensity_quantile: float = option(
        "intensity: the maximum deviation is this quantile of the deviations of training scans",
        0.99,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    copy_quantile: float = option(
        "near_copies, duplicates: the maximum similarity is this quantile of that between real scans of two subjects",
        0.95,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    steps: int = option("optimisation steps of the screening segmenter", 600, limits=_POSITIVE, applies_when=_SCREENED)
    ensemble: int = option(
        "screening segmenters that vote on where each mask is doubtful, for a confidence map per pair; 0: no maps",
        0,
        limits=at_least(0),
        applies_when=_SCREENED,
        identity=None,
    )
