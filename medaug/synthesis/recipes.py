"""Recipes: what each pair will be made of, decided before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.provenance import Recipe
from medaug.data.batches import shuffled_index
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.masks import make_mask, rejection

MOST_ATTEMPTS = 100


def write_recipe(
    index: int,
    hosts: Sequence[ModelCase],
    generate: GenerateOptions,
    masks: MasksOptions,
    sampler: SamplerOptions,
    checkpoint: str,
) -> tuple[Recipe, ModelCase, NDArray[np.uint8]]:
    """Recipe number `index` with its host and its mask: a pure function of the options and the checkpoint.

    Hosts are taken in seeded permutations, so that each is used as often as any other. A mask that is not plausible is
    drawn again under the next attempt number.

    Args:
        index: of the pair.
        hosts: labelled training cases.
        generate, masks, sampler: options.
        checkpoint: SHA-256 of the generator's checkpoint.

    Raises:
        UserError: no plausible mask in `MOST_ATTEMPTS` attempts.
    """
    host = hosts[shuffled_index(index, len(hosts), named_seed(generate.seed, "host"))]
    assert host.label is not None
    parameters = {k: v for k, v in asdict(masks).items() if k != "source"} if masks.source == "deformed" else {}
    for attempt in range(MOST_ATTEMPTS):
        seed = named_seed(generate.seed, "pair", index, attempt)
        mask = make_mask(np.asarray(host.label), masks, named_seed(seed, "mask"))
        reason = rejection(mask, np.asarray(host.label)) if masks.source == "deformed" else None
        if reason is None:
            recipe = Recipe(
                index=index,
                attempt=attempt,
                host=host.case.name,
                host_subject=host.case.subject,
                mask_source=masks.source,
                mask_parameters=parameters,
                guidance_scale=generate.guidance_scale,
                sampler=sampler.name,
                num_inference_steps=sampler.num_inference_steps,
                eta=sampler.eta,
                seed=seed,
                checkpoint=checkpoint,
            )
            return recipe, host, mask
    raise UserError(
        f"{host.case.name}: no plausible mask in {MOST_ATTEMPTS} attempts (the last: {reason}); "
        "deform less (masks.scaling, masks.translation, masks.elastic) or use masks=real"
    )
