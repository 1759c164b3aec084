"""The public API: a trained model, and synthetic pairs made on the fly for any training loop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import IterableDataset, get_worker_info

from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.noise import named_seed
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.keys import check_values, keys
from medaug.options import GenerateOptions, MasksOptions, Options, SamplerOptions
from medaug.processes import choose_device, process_count, process_rank
from medaug.synthesis.generation import on_host_grid, sample_images
from medaug.synthesis.job import Job
from medaug.synthesis.recipes import MOST_ATTEMPTS, Recipes, check_options, check_task
from medaug.tables import no_such
from medaug.training.checkpoint import Card, load_model
from medaug.training.model import DiffusionModel

PathLike = str | os.PathLike[str]
Pair = dict[str, Any]
"""One image-mask pair, see `SyntheticPairs`."""
_SAMPLING = Sampling()


@dataclass(frozen=True)
class Model:
    """A trained model that turns masks into images.

    Attributes:
        path: checkpoint of the model.
        sha256: SHA-256 of the checkpoint.
        card: the model card: options, preprocessing, labels, and the subjects that training saw.
        network: the torch module.
    """

    path: Path
    sha256: str
    card: Card = field(repr=False)
    network: DiffusionModel = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The grid on which the model works: voxels along R, A, S."""
        return self.card.preprocessing.shape

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Voxel size of that grid in mm; None if scans keep their own."""
        return self.card.preprocessing.spacing

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the image channels."""
        return self.card.modalities

    @property
    def labels(self) -> dict[int, str]:
        """Names of the classes by their value in a mask, background (0) first."""
        return dict(self.card.schema.labels)

    def sample(
        self,
        masks: ArrayLike,
        *,
        seed: int = 0,
        guidance: Guidance | float = GenerateOptions.guidance_scale,
        sampling: Sampling = _SAMPLING,
        attributes: Mapping[str, str | float] | None = None,
    ) -> torch.Tensor:
        """Sample one image for each mask.

        Args:
            masks: label values (B, X, Y, Z) on the model's grid (`shape`); (X, Y, Z) is one mask.
            seed: image i depends only on its mask, the seed and i.
            guidance: the guidance scale (0 ignores the mask, 1 is the plain conditional model, more exaggerates the
                mask), or a `Guidance`.
            sampling: sampler and number of steps.
            attributes: values of attributes by name, if the model was trained with any; the others are unknown.

        Returns:
            Images (B, M, X, Y, Z) in [-1, 1], float32, on the CPU.

        Raises:
            UserError: the masks have the wrong shape or contain a value that is not a label, the model needs other
                inputs besides masks, or the options do not fit the model.
        """
        indices = self._indices(masks)
        generate = _generate_options(guidance, attributes or {}, self.card.schema, seed)
        sampler = _sampler_options(sampling)
        check_task(self.network.task, self.card, self.path)
        check_values(Options(generate=generate, sampler=sampler), "generate", keys())
        check_options(self.network.process, self.card.schema, generate, sampler, self.card.attributes)
        known = self.card.attributes.requested(generate.attributes)
        recipes = [
            Recipe(
                index=i,
                attempt=0,
                host="",
                host_subject="",
                mask_source="given",
                mask_parameters={},
                guidance_scale=generate.guidance_scale,
                guidance_interval=generate.guidance_interval,
                guidance_rescale=generate.guidance_rescale,
                negative_classes=generate.negative_classes,
                sampler=sampling.name,
                num_inference_steps=sampling.steps,
                eta=sampling.eta,
                parameters=dict(sampling.parameters),
                overlap=sampling.overlap,
                seed=named_seed(seed, "sample", i),
                checkpoint=self.sha256,
                spacing=sampling.spacing,
                attributes=known,
            )
            for i in range(len(indices))
        ]
        scale = generate.guidance_scale
        return torch.from_numpy(sample_images(self.network, self.card.schema, recipes, list(indices), scale))

    def _indices(self, masks: ArrayLike) -> NDArray[np.uint8]:
        """Class indices (B, X, Y, Z) of masks."""
        array = np.asarray(masks)
        if array.ndim not in (3, 4) or array.shape[-3:] != self.shape or 0 in array.shape:
            raise UserError(
                f"masks: the shape is {array.shape}, but the model needs {self.shape} or (B, *{self.shape})",
                "resample them to the model's grid",
            )
        try:
            return self.card.schema.to_indices(array.reshape(-1, *self.shape))
        except UserError as error:
            raise UserError(f"masks: {error.what}", "give the values of the cohort's label files") from error


def _generate_options(
    guidance: Guidance | float, attributes: Mapping[str, str | float], schema: LabelSchema, seed: int
) -> GenerateOptions:
    """The options that a command line would have.

    Raises:
        UserError: the guidance names a class to lead away from that the schema does not have.
    """
    given = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    if unknown := [index for index in given.negative if not 0 < index < schema.num_classes]:
        raise UserError(
            f"guidance: {unknown[0]} is not the index of a foreground class",
            f"choose from 1 to {schema.num_classes - 1}",
        )
    return GenerateOptions(
        guidance_scale=given.scale,
        guidance_interval=None if given.interval is None else list(given.interval),
        guidance_rescale=given.rescale,
        negative_classes=[schema.names[index] for index in given.negative],
        attributes=[f"{name}:{value}" for name, value in attributes.items()],
        seed=int(seed),
    )


def _sampler_options(sampling: Sampling) -> SamplerOptions:
    """The options that a command line would have."""
    return SamplerOptions(
        name=sampling.name,
        num_inference_steps=sampling.steps,
        eta=sampling.eta,
        spacing=sampling.spacing,
        parameters=[f"{name}:{value!r}" for name, value in sampling.parameters.items()],
        overlap=sampling.overlap,
    )


def _masks_options(masks: str | Mapping[str, Any]) -> MasksOptions:
    """The options that a command line would have.

    Raises:
        UserError: an unknown key.
    """
    given = {"source": masks} if isinstance(masks, str) else masks
    known = [field.name for field in fields(MasksOptions)]
    if unknown := [key for key in given if key not in known]:
        raise no_such(f"masks: no key {unknown[0]}", unknown[0], known, f"(all: {', '.join(known)})")
    return MasksOptions(**given)


def load(path: PathLike) -> Model:
    """Load a trained model, with averaged weights, onto the GPU if there is one.

    Args:
        path: a checkpoint, or a run folder (runs/EXPERIMENT), of which the best checkpoint is used, otherwise the last.

    Raises:
        UserError: there is no such checkpoint, or it is damaged or was not written by medaug.
    """
    checkpoint = _find_checkpoint(Path(path))
    digest, card, network = _read(checkpoint)
    return Model(checkpoint, digest, card, network)


def _read(checkpoint: Path) -> tuple[str, Card, DiffusionModel]:
    card, network = load_model(checkpoint, choose_device())
    return file_sha256(checkpoint), card, network


def _find_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        return path
    for folder in (path / "train", path):
        for name in ("best.ckpt", "last.ckpt"):
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        "holds no checkpoint (best.ckpt or last.ckpt)",
        "give the folder of a training, such as runs/EXPERIMENT, or a checkpoint",
        path=path,
    )


class SyntheticPairs(IterableDataset[Pair]):
    """Synthetic image-mask pairs, made while they are read.

    Each pair is a dictionary as MONAI's transforms expect it:

        image: MetaTensor (M, X, Y, Z), float32, in the host's units, with its affine (mm, RAS).
        label: MetaTensor (1, X, Y, Z), uint8, label values as in the cohort's files, with the same affine.
        index: number of the pair.
        subject: the training subject whose grid, intensities and (for masks "real" and "deformed") mask were used.
        recipe: JSON text of everything that determines the pair, see `medaug.cohort.provenance.Recipe`.

    The pairs are those that `medaug.generate` writes with the same options. The processes of a data loader and of
    torchrun share the pairs, and each pair is made once. The number of processes and the loader's seed change only the
    order of the pairs.

    Args:
        checkpoint: a run folder or a checkpoint, as in `load`; the training's manifest.json lies beside the checkpoint,
            and its scans are needed too.
        masks: name of a mask source, or keys of `masks`, as in {"source": "deformed", "rotation": 3.0}.
        screen: called with each pair; if it returns False, the pair is made again with another seed, up to
            `MOST_ATTEMPTS` times.
        seed: root seed from which the seed of every pair is derived.
        num: number of pairs; None: no limit.
        guidance: the guidance scale, or a `Guidance`.
        sampling: sampler and number of steps.
        attributes: values of attributes by name, in place of the host's own.

    Raises:
        UserError: there is no such checkpoint, its training scans are missing or were changed, or the options do not
            fit the model.
    """

    def __init__(
        self,
        checkpoint: PathLike,
        masks: str | Mapping[str, Any] = "deformed",
        screen: Callable[[Pair], bool] | None = None,
        seed: int = 0,
        num: int | None = None,
        guidance: Guidance | float = GenerateOptions.guidance_scale,
        sampling: Sampling = _SAMPLING,
        attributes: Mapping[str, str | float] | None = None,
    ) -> None:
        if num is not None and num < 1:
            raise UserError(f"num={num}: must be at least 1", "give None for an unlimited number of pairs")
        self.checkpoint = _find_checkpoint(Path(checkpoint))
        self.screen = screen
        self.num = num
        self._options = Options(experiment="", masks=_masks_options(masks), sampler=_sampler_options(sampling))
        loaded = _read(self.checkpoint)
        self._options.generate = _generate_options(guidance, attributes or {}, loaded[1].schema, seed)
        check_values(self._options, "generate", keys())
        self._loaded: tuple[Job, Recipes] | None = self._job(loaded)

    def __getstate__(self) -> dict[str, Any]:
        """The state without model and scans, which a spawned process loads again."""
        return self.__dict__ | {"_loaded": None}

    def __iter__(self) -> Iterator[Pair]:
        """This process's share of the pairs."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine, all_shares = process_rank() * count + number, process_count() * count
        size = self._options.generate.batch_size
        # A batch is never split between processes: sampling its pairs separately would change their last digits.
        for start in itertools.count(mine * size, all_shares * size):
            batch = range(start, start + size if self.num is None else min(start + size, self.num))
            if not batch:
                return
            yield from self._make(batch)

    def _make(self, batch: Sequence[int]) -> Iterator[Pair]:
        _, recipes = self._load()
        planned = [recipes(index) for index in batch]
        for plan, pair in zip(planned, self._sample(planned), strict=True):
            while self.screen is not None and not self.screen(pair):
                plan = self._next(plan[0])
                [pair] = self._sample([plan])
            yield pair

    def _next(self, refused: Recipe) -> tuple[Recipe, ModelCase, NDArray[np.uint8]]:
        if refused.attempt + 1 == MOST_ATTEMPTS:
            raise UserError(
                f"pair {refused.index}: the screen refused {MOST_ATTEMPTS} attempts", "relax it, or train longer"
            )
        return self._load()[1](refused.index, refused.attempt + 1)

    def _sample(self, plans: Sequence[tuple[Recipe, ModelCase, NDArray[np.uint8]]]) -> list[Pair]:
        job, _ = self._load()
        recipes, hosts, masks = zip(*plans, strict=True)
        scale = recipes[0].guidance_scale
        images = sample_images(job.model, job.card.schema, recipes, masks, scale, hosts=hosts)
        return [
            _pair(job.card, recipe, host, mask, image)
            for (recipe, host, mask), image in zip(plans, images, strict=True)
        ]

    def _load(self) -> tuple[Job, Recipes]:
        if self._loaded is None:
            self._loaded = self._job(_read(self.checkpoint))
        return self._loaded

    def _job(self, loaded: tuple[str, Card, DiffusionModel]) -> tuple[Job, Recipes]:
        job = Job.of(self.checkpoint, loaded, self._options, self.checkpoint.parent.parent / "cache")
        return job, job.recipes()


def _pair(card: Card, recipe: Recipe, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]) -> Pair:
    volumes, values = on_host_grid(card, host, mask, image)
    affine = torch.from_numpy(np.array(host.affine))
    return {
        "image": MetaTensor(torch.from_numpy(volumes.astype(np.float32)), affine),
        "label": MetaTensor(torch.from_numpy(values[None].astype(np.uint8)), affine),
        "index": recipe.index,
        "subject": recipe.host_subject,
        "recipe": recipe.to_json(),
    }
