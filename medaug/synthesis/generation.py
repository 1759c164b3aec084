"""Turns recipes into files of pairs: a pair is complete or absent, and a finished pair is never made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medaug.cohort import provenance
from medaug.cohort.provenance import PAIR, Recipe
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.imaging.nifti import write_volume
from medaug.marking.mark import synthetic_note
from medaug.processes import process_count, process_rank
from medaug.progress import track
from medaug.synthesis.recipes import recipe_guidance, recipe_sampling
from medaug.training.checkpoint import Card
from medaug.training.model import Context, DiffusionModel

log = logging.getLogger(__name__)

Plan = Callable[[int], tuple[Recipe, ModelCase, NDArray[np.uint8]]]
"""A function of a pair's index that returns its recipe, its host and its mask (X, Y, Z) in model space."""


def sample_images(
    model: DiffusionModel,
    schema: LabelSchema,
    recipes: Sequence[Recipe],
    masks: Sequence[NDArray[np.uint8]],
    guidance_scale: float,
    watch: Callable[[float, NDArray[np.float32]], None] | None = None,
) -> NDArray[np.float32]:
    """Images (B, M, X, Y, Z) in [-1, 1] for masks (X, Y, Z), each by its recipe's seed.

    Recipes share sampler and guidance, and each has attributes of its own; `guidance_scale` stands in for theirs.
    `schema` is the model's.
    `watch` is called at each evaluation of the model with its time and the images expected there.
    """
    device = model.codec.mean.device
    label = torch.from_numpy(np.stack(masks)).long().to(device)
    seeds = [recipe.seed for recipe in recipes]
    attributes = torch.stack([model.attributes.encode(recipe.attributes) for recipe in recipes]).to(device)
    try:
        images = model.sample(
            label,
            seeds,
            recipe_sampling(recipes[0]),
            recipe_guidance(recipes[0], schema, guidance_scale),
            Context(attributes=attributes),
            watch=None if watch is None else lambda t, images: watch(t, images.cpu().numpy()),
        )
    except ValueError as error:
        raise UserError(f"sampler: {error}") from error
    return images.cpu().numpy()


def generate_pairs(
    model: DiffusionModel,
    card: Card,
    plan: Plan,
    num: int,
    batch_size: int,
    folder: Path,
    mask_seen: Seen | None = None,
) -> None:
    """Write pairs 0..num-1 below `folder` (imagesTr, labelsTr, provenance.jsonl); recorded pairs are left as they are.

    Each pair lies on its host's grid, in the host's units and voxel type. A pair is finished once its record is on
    disk, and the record is written after both files. `mask_seen` is what the training of a mask generator saw.

    The composition of a batch changes the last digits of floating-point results, so it depends only on the pairs'
    indices. An interrupted batch is sampled again as a whole, and only its missing pairs are written. The same command
    therefore gives the same bits however often it was stopped.

    With several processes, each makes the pairs rank, rank + count, ... and keeps its own records.
    """
    rank, count = process_rank(), process_count()
    record = provenance.rank_file(folder, rank)
    if count > 1:  # create it early: NFS clients may see new files with a delay
        record.open("ab").close()
    made = {index for index, _ in provenance.read_all(folder, PAIR)}
    mine = range(rank, num, count)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    for batch in track([batch for batch in batches if not made.issuperset(batch)], "generating"):
        recipes, hosts, masks = zip(*(plan(index) for index in batch), strict=True)
        images = sample_images(model, card.schema, recipes, masks, recipes[0].guidance_scale)
        for recipe, host, mask, image in zip(recipes, hosts, masks, images, strict=True):
            if recipe.index in made:
                continue
            files = _write_pair(folder, card, recipe, host, mask, image)
            line = {**recipe.to_mapping(), **files, "subjects": [recipe.host_subject], "version": version("medaug")}
            if mask_seen is not None:
                line["subjects"] = sorted({recipe.host_subject, *mask_seen.in_split("train")})
                line["mask_validation_subjects"] = sorted(mask_seen.in_split("val"))
            provenance.append(record, line)


def _write_pair(
    folder: Path,
    card: Card,
    recipe: Recipe,
    host: ModelCase,
    mask: NDArray[np.uint8],
    image: NDArray[np.float32],
) -> dict[str, Any]:
    """Write one pair; returns its name, its files with their digests, and the host voxels that the model generated."""
    name = f"{card.experiment}_synthetic_{recipe.index:05d}"
    description = synthetic_note(recipe.to_mapping(), card.phantom)
    volumes, values = on_host_grid(card, host, mask, image)
    images = [f"imagesTr/{name}_{m:04d}.nii.gz" for m in range(len(volumes))]
    for file, volume in zip(images, volumes, strict=True):
        write_volume(folder / file, volume, host.affine, description)
    label = f"labelsTr/{name}.nii.gz"
    write_volume(folder / label, values, host.affine, description)
    # Beyond this box of the host's grid, [start, stop) along each axis, the files hold background.
    region = [list(ends) for ends in card.preprocessing.region(host.placement)]
    contents = {file: file_sha256(folder / file) for file in (*images, label)}
    return {"name": name, "images": images, "label": label, "region": region, "contents": contents}


def on_host_grid(
    card: Card, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A pair as it is written: on its host's grid, in the host's units and voxel type.

    Args:
        card: of the model.
        host: of the pair.
        mask: (X, Y, Z) class indices or IGNORE, in model space.
        image: (M, X, Y, Z) in [-1, 1], in model space.

    Returns:
        Image (M, *host shape), and label values (*host shape) as in the cohort's files.

    Raises:
        UserError: the host's intensities cannot be restored.
    """
    volumes = [_as_stored(volume, host.dtype) for volume in card.preprocessing.invert_image(image, host.placement)]
    return np.stack(volumes), card.schema.to_values(card.preprocessing.invert_label(mask, host.placement))


def _as_stored(volume: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert a volume to the host's voxel type; for integer types, values are rounded and clipped to their range.

    Raises:
        UserError: NaN or infinite values, which an integer type would turn into numbers.
    """
    if not np.isfinite(volume).all():
        raise UserError("a synthetic volume holds NaN or infinite values in its host's units", "leave that host out")
    if dtype.kind == "f":
        return volume.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(volume), limits.min, limits.max).astype(dtype)
