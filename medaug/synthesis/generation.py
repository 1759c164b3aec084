"""Turns recipes into files of pairs: a pair is complete or absent, and a finished pair is never made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medaug.cohort import provenance
from medaug.cohort.provenance import REJECTED_FOLDER, Recipe
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.geometry import Box
from medaug.diffusion.inpainting import Inpainting
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.imaging.nifti import write_volume
from medaug.imaging.volume import as_stored
from medaug.marking.mark import synthetic_note
from medaug.processes import process_count, process_rank
from medaug.progress import counting
from medaug.screening.confidence import doubt
from medaug.screening.rules import Sample, passed, verdicts_to_mapping
from medaug.screening.screen import Screen
from medaug.synthesis.attempts import Attempts
from medaug.synthesis.boxes import HostBox
from medaug.synthesis.insertion import Insertion
from medaug.synthesis.recipes import recipe_guidance, recipe_sampling
from medaug.training.checkpoint import Card
from medaug.training.model import Context, DiffusionModel

log = logging.getLogger(__name__)

Plan = Callable[[int, int], tuple[Recipe, ModelCase, NDArray[np.uint8]]]
"""A function of a pair's index and first attempt number that returns its recipe, its host and its mask (X, Y, Z) in
model space."""


def sample_images(
    model: DiffusionModel,
    schema: LabelSchema,
    recipes: Sequence[Recipe],
    masks: Sequence[NDArray[np.uint8]],
    guidance_scale: float,
    watch: Callable[[float, NDArray[np.float32]], None] | None = None,
    inpainting: Inpainting | None = None,
    hosts: Sequence[ModelCase] = (),
) -> NDArray[np.float32]:
    """Sample images (B, M, X, Y, Z) in [-1, 1] for masks (X, Y, Z), each with the seed of its recipe.

    The recipes must have the same sampler and guidance; their attributes may differ. `guidance_scale` is used instead
    of the recipes' scale. `schema` is that of the model. `watch` is called at each evaluation of the model, with the
    time and the images that the model expects at that time. With `inpainting`, only its region is sampled. The model
    gets the field of view of the `hosts`; without hosts, that is the whole grid.
    """
    device = model.codec.mean.device
    label = torch.from_numpy(np.stack(masks)).long().to(device)
    seeds = [recipe.seed for recipe in recipes]
    attributes = torch.stack([model.attributes.encode(recipe.attributes) for recipe in recipes]).to(device)
    inside = torch.from_numpy(np.stack([host.inside for host in hosts])).to(device) if hosts else None
    try:
        images = model.sample(
            label,
            seeds,
            recipe_sampling(recipes[0]),
            recipe_guidance(recipes[0], schema, guidance_scale),
            Context(attributes=attributes, field_of_view=inside, place=_place(model, hosts, device)),
            watch=None if watch is None else lambda t, images: watch(t, images.cpu().numpy()),
            inpainting=inpainting,
        )
    except ValueError as error:
        raise UserError(f"sampler: {error}") from error
    return images.cpu().numpy()


def _place(model: DiffusionModel, hosts: Sequence[ModelCase], device: torch.device) -> Tensor | None:
    """Where boxes of scans lie in the model's grid, (B, 6); None for whole scans."""
    boxes = [host for host in hosts if isinstance(host, HostBox)]
    if not boxes or not model.network.shape.coordinates:
        return None
    return torch.stack([box.place(model.codec.stride) for box in boxes]).to(device)


@dataclass(frozen=True)
class Screening:
    """Decides which images are kept.

    Attributes:
        screen: fitted rules.
        screener: digest of the record that says what the rules were fitted on (`medaug.screening.screener`).
        retries: how many times a rejected pair is tried again.
        keep_rejected: whether the files of rejected pairs are written too.
        ensemble: segmenters that make the confidence maps; without any, there are none.
    """

    screen: Screen
    screener: str
    retries: int
    keep_rejected: bool
    ensemble: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class Manner:
    """What is special about the pairs of a run.

    Attributes:
        record: returns further content of a pair's record, see `Recipes.record`; None: there is none.
        insertion: edits the hosts; None: whole images are generated.
    """

    record: Callable[[Recipe], Mapping[str, Any]] | None = None
    insertion: Insertion | None = None


def generate_pairs(
    model: DiffusionModel,
    card: Card,
    plan: Plan,
    num: int,
    batch_size: int,
    folder: Path,
    manner: Manner | None = None,
    screening: Screening | None = None,
) -> None:
    """Write pairs 0..num-1 below `folder` (imagesTr, labelsTr, provenance.jsonl); recorded pairs are left as they are.

    Each pair is on its host's grid, in the host's units and voxel type. A pair is finished once its record is on disk,
    and the record is written after both files. With `screening`, a rejected pair gets a record in the folder of
    rejected pairs and is tried again with the next attempt number.

    The composition of a batch changes the last digits of floating-point results, so it depends only on the pairs'
    indices and the verdicts. An interrupted batch is sampled again as a whole, and only its missing pairs are written.
    The same command therefore gives the same bits, no matter how often it was stopped.

    With several processes, each makes the pairs rank, rank + count, ... and keeps its own records.
    """
    rank, count = process_rank(), process_count()
    writer = _Writer(folder, card, rank, manner or Manner(), screening)
    if count > 1:  # create it early: NFS clients may see new files with a delay
        writer.file.open("ab").close()
    attempts = Attempts.read(folder, 0 if screening is None else screening.retries)
    mine = range(rank, num, count)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    with counting("generating", "pairs", len(mine), sum(map(attempts.settled, mine))) as advance:
        for batch in batches:
            if left := sum(not attempts.settled(index) for index in batch):
                for turn in range(attempts.retries + 1):
                    _take_turn(model, plan, writer, attempts, batch, turn)
                advance(left)


def _take_turn(
    model: DiffusionModel, plan: Plan, writer: _Writer, attempts: Attempts, batch: Sequence[int], turn: int
) -> None:
    """Sample the pairs of a batch that were rejected `turn` times, and write those that are not on record."""
    members = attempts.turn(batch, turn)
    missing = attempts.open([index for index, _ in members], turn)
    if not missing:
        return
    recipes, hosts, masks = zip(*(plan(*member) for member in members), strict=True)
    insertion, scale = writer.manner.insertion, recipes[0].guidance_scale
    known = None if insertion is None else insertion.inpainting(hosts, masks, model.codec.mean.device)
    images = sample_images(model, writer.card.schema, recipes, masks, scale, None, known, hosts)
    for pair in zip(recipes, hosts, masks, images, strict=True):
        if (recipe := pair[0]).index not in missing:
            continue
        if writer.write(*pair):
            attempts.accepted.add(recipe.index)
        else:
            attempts.reject(recipe.index, recipe.attempt)


@dataclass(frozen=True)
class _Writer:
    """Judges and writes the pairs of one process, and their records."""

    folder: Path
    card: Card
    rank: int
    manner: Manner
    screening: Screening | None

    @property
    def file(self) -> Path:
        return provenance.rank_file(self.folder, self.rank)

    def write(self, recipe: Recipe, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]) -> bool:
        """Write one pair, or the record that it was rejected; returns whether it was accepted."""
        verdicts = None if self.screening is None else self.screening.screen.judge(Sample.of_pair(host, mask, image))
        accepted = verdicts is None or passed(verdicts)
        folder, name = self.folder, f"{self.card.experiment}_synthetic_{recipe.index:05d}"
        if not accepted:
            folder, name = folder / REJECTED_FOLDER, f"{name}_attempt_{recipe.attempt:02d}"
        files: dict[str, Any] = {"name": name}
        if accepted or self._keeps(image):
            stored = self._stored(host, mask, image)
            files = _write_pair(folder, name, self.card, recipe, host, stored, self._doubt(host, mask, image))
        line = {**recipe.to_mapping(), **files, "subjects": [recipe.host_subject], "version": version("medaug")}
        if self.manner.record is not None:
            line |= self.manner.record(recipe)
        if self.screening is not None and verdicts is not None:
            line |= {"screening": verdicts_to_mapping(verdicts), "screener": self.screening.screener}
        provenance.append(self.file if accepted else provenance.rank_file(folder, self.rank), line)
        return accepted

    def _stored(self, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]) -> _Stored:
        insertion = self.manner.insertion
        if insertion is None:
            return _Stored(*on_host_grid(self.card, host, mask, image), self.card.preprocessing.region(host.placement))
        volumes, values = insertion.on_host_grid(self.card, host, mask, image)
        x, y, z = values.shape
        return _Stored(volumes, values, ((0, x), (0, y), (0, z)))

    def _doubt(self, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        if self.screening is None or not self.screening.ensemble:
            return None
        return doubt(self.screening.ensemble, Sample.of_pair(host, mask, image))

    def _keeps(self, image: NDArray[np.float32]) -> bool:
        """Whether to write the files of a rejected pair; NaN or infinite voxels cannot be converted to host units."""
        return self.screening is not None and self.screening.keep_rejected and bool(np.isfinite(image).all())


class _Stored(NamedTuple):
    """A pair on its host's grid: image (M, X, Y, Z), label values (X, Y, Z), the box beyond which all is background."""

    volumes: NDArray[Any]
    values: NDArray[np.uint8]
    region: Box


def _write_pair(
    folder: Path,
    name: str,
    card: Card,
    recipe: Recipe,
    host: ModelCase,
    stored: _Stored,
    doubted: NDArray[np.uint8] | None,
) -> dict[str, Any]:
    """Write one pair; returns its name, its files with their digests, and the host voxels that the model generated.

    `doubted` is 1 where the segmenters doubt the mask; None: the pair has no confidence map.
    """
    description = synthetic_note(recipe.to_mapping(), card.phantom)
    images = [f"imagesTr/{name}_{m:04d}.nii.gz" for m in range(len(stored.volumes))]
    for file, volume in zip(images, stored.volumes, strict=True):
        write_volume(folder / file, volume, host.affine, description)
    label = f"labelsTr/{name}.nii.gz"
    write_volume(folder / label, stored.values, host.affine, description)
    further = {}
    if doubted is not None:
        further["confidence"] = f"confidenceTr/{name}.nii.gz"
        confidence = 1 - card.preprocessing.invert_label(doubted, host.placement)
        write_volume(folder / further["confidence"], confidence, host.affine, description)
    # Beyond this box of the host's grid, [start, stop) along each axis, the files hold background.
    region = [list(ends) for ends in stored.region]
    contents = {file: file_sha256(folder / file) for file in (*images, label, *further.values())}
    return {"name": name, "images": images, "label": label, **further, "region": region, "contents": contents}


def on_host_grid(
    card: Card, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A pair as it is written to files: on its host's grid, in the host's units and voxel type.

    Args:
        card: card of the model.
        host: host of the pair.
        mask: (X, Y, Z) class indices or IGNORE, in model space.
        image: (M, X, Y, Z) in [-1, 1], in model space.

    Returns:
        Image (M, *host shape), and label values (*host shape) as in the cohort's files.

    Raises:
        UserError: the host's intensities cannot be restored.
    """
    volumes = [as_stored(volume, host.dtype) for volume in card.preprocessing.invert_image(image, host.placement)]
    return np.stack(volumes), card.schema.to_values(card.preprocessing.invert_label(mask, host.placement))
