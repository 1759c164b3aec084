"""Predicts the volumes of one scan, on its own grid, and scores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

from medaug.cohort.schema import IGNORE
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.inpainting import Inpainting
from medaug.diffusion.noise import named_seed
from medaug.evaluation.images import psnr, ssim
from medaug.evaluation.scores import segmentation_scores
from medaug.evaluation.uncertainty import auroc, entropy
from medaug.imaging.cases import read_indices
from medaug.options import PredictOptions, ScoringOptions
from medaug.prediction.request import Request
from medaug.prediction.scans import Scan, read_truth
from medaug.training.checkpoint import Card
from medaug.training.model import Context, DiffusionModel

Score = tuple[str, str, float | None]
"""Structure or modality, metric, and value (None: undefined for this scan)."""


@dataclass(frozen=True)
class Prediction:
    """The result for one scan.

    Attributes:
        volumes: volumes (X, Y, Z) on the scan's grid; the keys become the ends of the file names.
        scores: scores of the volumes, empty without a truth.
    """

    volumes: dict[str, NDArray[np.generic]]
    scores: list[Score]


@dataclass(frozen=True)
class Predictor:
    """A model with a request. The result of `predict` depends on these and on the scan alone."""

    card: Card
    model: DiffusionModel
    request: Request
    options: PredictOptions
    scoring: ScoringOptions = field(default_factory=ScoringOptions)

    @property
    def refine(self) -> int:
        """Into how many voxels per axis each voxel of a scan is split first: super-resolution's factor, otherwise 1."""
        task = self.model.task
        return task.factor if task.degradation == "low_resolution" and not self.options.degrade else 1

    def predict(self, scan: Scan) -> Prediction:
        """Predict the requested volumes and score them."""
        if self.request.inpainted:
            return self._inpaint(scan)
        return self._segment(scan) if self.model.task.target == "label" else self._image(scan)

    def _samples(
        self, scan: Scan, label: NDArray[np.uint8], given: Tensor | None, inpainting: Inpainting | None = None
    ) -> Tensor:
        """Samples (num_samples, num_targets, *model grid) on the CPU; each sample has its own seed."""
        device = self.model.codec.mean.device
        seeds = [named_seed(self.options.seed, "predict", scan.case.name, k) for k in range(self.request.num_samples)]
        encoder = self.model.attributes
        attributes = encoder.encode(encoder.of(scan.case, scan.affine)).to(device)
        inside = torch.from_numpy(self.card.preprocessing.grid.inside(scan.placement)).to(device)
        size, samples = self.options.batch_size, []
        for some in (seeds[i : i + size] for i in range(0, len(seeds), size)):
            labels = torch.from_numpy(label).long()[None].expand(len(some), -1, -1, -1)
            images = None if given is None else given.expand(len(some), -1, -1, -1, -1).to(device)
            number = len(some)
            context = Context(images, attributes.expand(number, -1), field_of_view=inside.expand(number, -1, -1, -1))
            samples.append(
                self.model.sample(
                    labels.to(device),
                    some,
                    self.request.sampling,
                    Guidance(self.options.guidance_scale),
                    context,
                    inpainting=inpainting,
                ).cpu()
            )
        return torch.cat(samples)

    def _given(self, scan: Scan) -> Tensor | None:
        """The images in the model's condition, (1, num_images, *model grid); None if the task has none."""
        if not self.model.task.num_images:
            return None
        seed = named_seed(self.options.seed, "degrade", scan.case.name)
        return self.model.task.images_of(torch.from_numpy(scan.image)[None], [seed], self.options.degrade)

    def _label(self, scan: Scan) -> NDArray[np.uint8]:
        return np.zeros(scan.image.shape[1:], np.uint8) if scan.label is None else scan.label

    def _image(self, scan: Scan) -> Prediction:
        task, card = self.model.task, self.card
        given = self._given(scan)
        samples = self._samples(scan, self._label(scan), given)
        volumes, poor = self._in_units(scan, samples), None
        if self.options.degrade:
            assert given is not None
            poor = given[0, -len(task.generated) :].numpy()
            degraded = card.preprocessing.invert_image(poor, scan.placement_of(task.generated, card))
            for m, volume in zip(task.generated, degraded, strict=True):
                volumes[f"{file_part(card.modalities[m])}_degraded"] = volume
        return Prediction(volumes, list(self._image_scores(scan, samples.mean(0).numpy(), poor)))

    def _in_units(self, scan: Scan, samples: Tensor) -> dict[str, NDArray[np.generic]]:
        """Mean of the samples on the scan's grid, in its units; with several samples also their standard deviation."""
        task, card = self.model.task, self.card
        placement = scan.placement_of(task.generated, card)
        names = [file_part(card.modalities[m]) for m in task.generated]
        volumes = dict(zip(names, card.preprocessing.invert_image(samples.mean(0).numpy(), placement), strict=True))
        if len(samples) > 1:
            stds = card.preprocessing.invert_deviation(samples.std(0).numpy(), placement)
            volumes |= {f"{name}_uncertainty": std for name, std in zip(names, stds, strict=True)}
        return volumes

    def _image_scores(self, scan: Scan, mean: NDArray[np.float32], poor: NDArray[np.float32] | None) -> Iterator[Score]:
        if not self.request.truth:
            return
        generated = self.model.task.generated
        known = set(generated) <= set(scan.inputs)
        truth = scan.image[list(generated)] if known else read_truth(self.request.manifest, scan, self.card, generated)
        for c, m in enumerate(generated):
            name, real = self.card.modalities[m], scan.field_of_view(truth[c])
            for suffix, volumes in (("", mean), ("_degraded", poor)):
                if volumes is not None:
                    covered = scan.field_of_view(volumes[c])
                    yield name, f"psnr{suffix}", psnr(covered, real)
                    yield name, f"ssim{suffix}", ssim(covered, real)

    def _segment(self, scan: Scan) -> Prediction:
        card, schema = self.card, self.card.schema
        samples = self._samples(scan, self._label(scan), self._given(scan))
        votes = np.stack([schema.one_hot(label)[1:] for label in self.model.task.label_of(samples).numpy()])
        probabilities = card.preprocessing.invert_probabilities(votes.mean(0, dtype=np.float32), scan.placement)
        label, uncertainty = probabilities.argmax(0).astype(np.uint8), entropy(probabilities)
        volumes: dict[str, NDArray[np.generic]] = {"label": schema.to_values(label), "uncertainty": uncertainty}
        if self.options.probabilities:
            volumes |= {
                f"probability_{file_part(name)}": plane for name, plane in zip(schema.names, probabilities, strict=True)
            }
        scores: list[Score] = []
        if (truth := read_indices(self.request.manifest, scan.case, scan.grid)) is not None:
            spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
            scores += segmentation_scores(label, truth, spacing, schema, self.scoring, probabilities)
            region = tuple(slice(*ends) for ends in card.preprocessing.region(scan.placement))
            labelled = truth[region] != IGNORE
            wrong = (label != truth)[region][labelled]
            scores.append(("all voxels", "auroc_of_uncertainty", auroc(uncertainty[region][labelled], wrong)))
        return Prediction(volumes, scores)

    def _inpaint(self, scan: Scan) -> Prediction:
        card, task = self.card, self.model.task
        assert scan.label is not None
        label, region = inpainting_region(scan.label, self.request.inpainted, self.options.margin)
        inpainting = Inpainting(
            torch.from_numpy(scan.image[list(task.generated)])[None].to(self.model.codec.mean.device),
            torch.from_numpy(region)[None, None].to(self.model.codec.mean.device),
            self.options.resample,
        )
        samples = self._samples(scan, label if self.options.remove else scan.label, None, inpainting)
        within = card.preprocessing.invert_label(region.astype(np.uint8), scan.placement).astype(bool)
        real = {file_part(card.modalities[m]): scan.host[scan.inputs.index(m)] for m in task.generated}
        volumes: dict[str, NDArray[np.generic]] = {"region": within.astype(np.uint8)}
        for kind, volume in self._in_units(scan, samples).items():
            # Outside the region: the real intensities, and an uncertainty of 0.
            volumes[kind] = np.where(within, volume, real.get(kind, np.float32(0)))
        return Prediction(volumes, [])


def inpainting_region(
    label: NDArray[np.uint8], classes: tuple[int, ...], margin: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The label map (X, Y, Z) with the classes set to background, and the region to inpaint.

    The region consists of the voxels of the classes and of those within `margin` steps of them.
    """
    chosen = np.isin(label, classes)
    region = binary_dilation(chosen, iterations=margin) if margin else chosen
    return np.where(chosen, 0, label).astype(np.uint8), region


def file_part(name: str) -> str:
    """Make a name safe for file names: letters, digits, dots, dashes and underscores stay, the rest becomes a dash."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
