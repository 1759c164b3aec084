"""The loop from recipes to files: a pair is whole or absent, and a finished pair is never made again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medaug.cohort import provenance
from medaug.cohort.manifest import SPACING, Case, Manifest
from medaug.cohort.provenance import PAIR, Recipe
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.imaging.nifti import write_volume
from medaug.progress import track
from medaug.runs import finished
from medaug.training.checkpoint import Card
from medaug.training.model import DiffusionModel

log = logging.getLogger(__name__)

Plan = Callable[[int], tuple[Recipe, ModelCase, NDArray[np.uint8]]]
"""Pair number to its recipe, its host and its mask (X, Y, Z) in model space."""


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
    first = recipes[0]
    interval = first.guidance_interval
    try:
        images = model.sample(
            label,
            seeds,
            guidance_scale=guidance_scale,
            sampler=first.sampler,
            num_inference_steps=first.num_inference_steps,
            eta=first.eta,
            spacing=first.spacing,
            guidance_interval=None if interval is None else (interval[0], interval[1]),
            guidance_rescale=first.guidance_rescale,
            attributes=attributes,
            negative_classes=[schema.names.index(name) for name in first.negative_classes],
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
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write pairs 0..num-1 below `folder` (imagesTr, labelsTr, provenance.jsonl); those on record are left alone.

    Each pair lies on its host's grid, in the host's units and voxel type. A pair counts as made when its record is on
    disk, and the record is written after both files. `mask_seen` is what a mask generator saw.

    Which pairs are sampled together depends on their indices alone, because the batch decides the last digits of
    floating point. A batch that was interrupted is therefore sampled again as a whole, and only its missing pairs are
    written: the same command gives the same bits however often it was stopped.

    Of `ranks` processes, number `rank` makes the pairs rank, rank + ranks, ..., and keeps records of its own.
    """
    record = provenance.rank_file(folder, rank)
    made = {index for index, _ in provenance.read_all(folder, PAIR)}
    mine = range(rank, num, ranks)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    for batch in track([batch for batch in batches if not made.issuperset(batch)], "generating"):
        recipes, hosts, masks = zip(*(plan(index) for index in batch), strict=True)
        images = sample_images(model, card.schema, recipes, masks, recipes[0].guidance_scale)
        for recipe, host, mask, image in zip(recipes, hosts, masks, images, strict=True):
            if recipe.index in made:
                continue
            files = _write_pair(folder, card, recipe, host, mask, image)
            line = {**recipe.to_mapping(), **files, "subjects": [recipe.host_subject]}
            if mask_seen is not None:
                line["subjects"] = sorted({recipe.host_subject, *mask_seen.in_split("train")})
                line["mask_validation_subjects"] = sorted(mask_seen.in_split("val"))
            provenance.append(record, line)


def synthetic_manifest(card: Card, folder: Path, num: int) -> Manifest:
    """The manifest of those of pairs 0..num-1 that are in `folder`: all for training, each under its host's subject."""
    records = [r for r in provenance.read_all(folder, PAIR).values() if r["index"] < num]
    notice = "Phantoms, not patients. " if card.phantom else ""
    return Manifest(
        name=f"{card.experiment}_synthetic",
        description=f"{notice}Synthetic image-mask pairs of experiment {card.experiment}; not for clinical use.",
        modalities=card.modalities,
        schema=card.schema,
        cases=tuple(_case(r) for r in records),
        root=str(folder.resolve()),
        phantom=card.phantom,
    )


def _case(record: Mapping[str, Any]) -> Case:
    images, label = tuple(record["images"]), record["label"]
    return Case(record["name"], images, label, record["host_subject"], "train", _known(record))


def _known(record: Mapping[str, Any]) -> dict[str, str | float]:
    """The attributes of a pair that a manifest may hold."""
    return {name: value for name, value in record.get("attributes", {}).items() if name != SPACING}


def _write_pair(
    folder: Path,
    card: Card,
    recipe: Recipe,
    host: ModelCase,
    mask: NDArray[np.uint8],
    image: NDArray[np.float32],
) -> dict[str, Any]:
    """Write one pair; returns its name, its files with their digests, and the host voxels that the model drew."""
    name = f"{card.experiment}_synthetic_{recipe.index:05d}"
    description = "medaug synthetic" + (" phantom" if card.phantom else "")
    volumes = card.preprocessing.invert_image(image, host.placement)
    images = [f"imagesTr/{name}_{m:04d}.nii.gz" for m in range(len(volumes))]
    for file, volume in zip(images, volumes, strict=True):
        write_volume(folder / file, _as_stored(volume, host.dtype), host.affine, description)
    label = f"labelsTr/{name}.nii.gz"
    values = card.schema.to_values(card.preprocessing.invert_label(mask, host.placement))
    write_volume(folder / label, values, host.affine, description)
    # Beyond this box of the host's grid, [start, stop) along each axis, the files hold background.
    region = [list(ends) for ends in card.preprocessing.region(host.placement)]
    contents = {file: file_sha256(folder / file) for file in (*images, label)}
    return {"name": name, "images": images, "label": label, "region": region, "contents": contents}


def _as_stored(volume: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The host's voxel type; integers are rounded and kept within their range.

    Raises:
        UserError: NaN or infinite values, which an integer type would turn into numbers.
    """
    if not np.isfinite(volume).all():
        raise UserError("a synthetic volume holds NaN or infinite values in its host's units; leave that host out")
    if dtype.kind == "f":
        return volume.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(volume), limits.min, limits.max).astype(dtype)


@dataclass(frozen=True)
class Pairs:
    """A finished synthetic dataset: its manifest, its provenance, and a digest of both."""

    manifest: Manifest
    records: tuple[Mapping[str, Any], ...]
    digest: str


def finished_pairs(folder: Path, command: str = "make generate") -> Pairs:
    """What medaug.generate left in `folder`.

    Args:
        folder: of the run.
        command: that makes the pairs, for messages.

    Raises:
        UserError: nothing is there, its generation is unfinished, or what it says of the pairs was changed later.
    """
    summary = finished(folder)
    if summary is None:
        raise UserError(f"{folder}: no finished synthetic pairs; run medaug.generate first ({command})")
    manifest = Manifest.load(folder / "manifest.json")
    made = {case.name: case for case in manifest.cases}
    records = tuple(r for r in provenance.read_all(folder, PAIR).values() if r["name"] in made)
    for record in records:
        if changed := _differs(made[record["name"]], record):
            raise UserError(
                f"{folder / 'manifest.json'}: {changed} of {record['name']} is not what its provenance says; restore "
                "the file, or remove the folder and generate again"
            )
    digest = pairs_digest(manifest, records)
    if summary.get("digest", digest) != digest:
        raise UserError(
            f"{folder}: manifest.json or the provenance was changed after the pairs were finished; restore the files, "
            "or remove the folder and generate again"
        )
    return Pairs(manifest, records, digest)


def pairs_digest(manifest: Manifest, records: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of what is said of the pairs, their contents included."""
    return hashlib.sha256(json.dumps([manifest.to_mapping(), records], sort_keys=True).encode()).hexdigest()


def _differs(case: Case, record: Mapping[str, Any]) -> str:
    """What a manifest says of a pair otherwise than its record; "" where they agree."""
    said = {
        "image": (list(case.images), record.get("images")),
        "label": (case.label, record.get("label")),
        "subject": (case.subject, record.get("host_subject")),
        "split": (case.split, "train"),
        "attributes": (dict(case.attributes), _known(record) if "attributes" in record else None),
    }
    return next((name for name, (ours, theirs) in said.items() if theirs is not None and ours != theirs), "")


def refuse_changed_pairs(pairs: Pairs, digests: Mapping[Path, str]) -> None:
    """Hold the files of pairs against the digests in their records; says how many have none.

    Args:
        pairs: as finished.
        digests: SHA-256 of the files as they are now, by path.

    Raises:
        UserError: a file is not the one that was generated.
    """
    unknown = 0
    for record in pairs.records:
        contents = record.get("contents")
        unknown += contents is None
        for file, digest in (contents or {}).items():
            path = Path(pairs.manifest.root, file)
            if digests[path] != digest:
                raise UserError(
                    f"{path}: a file of {record['name']} that is not the one that was generated; restore it, or remove "
                    "the folder and generate again"
                )
    if unknown:
        log.warning(
            "%s: %d pairs are from before digests were recorded, so whether their files were changed cannot be told",
            pairs.manifest.root,
            unknown,
        )
