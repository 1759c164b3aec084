"""What a MONAI bundle of a generator runs; the bundle carries this module and those that it imports.

So it imports nothing but MONAI, torch, numpy, scipy, scikit-image, nibabel, einops, PyYAML and safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from medaug.diffusion.guidance import Guidance
from medaug.diffusion.samplers import Sampling
from medaug.imaging.nifti import write_volume
from medaug.training.checkpoint import Card
from medaug.training.model import Context

CARD, WEIGHTS = "card.json", "model.safetensors"
NOTE = "medaug synthetic"


class BundledGenerator:
    """A trained model that turns masks into images.

    Args:
        folder: the folder that holds `CARD` and `WEIGHTS`.
        device: such as "cpu" or "cuda".
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.card = Card.from_dict(json.loads(Path(folder, CARD).read_text(encoding="utf-8")))
        self.model = self.card.build()
        self.model.load_state_dict(load_file(Path(folder, WEIGHTS)))
        self.model = self.model.to(device).eval()

    def sample(
        self,
        mask: NDArray[np.uint8],
        seed: int,
        guidance: Guidance,
        sampling: Sampling,
        inside: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """An image (M, *grid) in [-1, 1] for class indices (*grid) on the model's grid; inside: voxels of the scan."""
        device = self.model.codec.mean.device
        label = torch.from_numpy(mask[None]).long().to(device)
        context = Context(field_of_view=None if inside is None else torch.from_numpy(inside[None]).to(device))
        return self.model.sample(label, [seed], sampling, guidance, context).cpu().numpy()[0]

    def write(
        self,
        mask: str,
        output_dir: str,
        seed: int = 0,
        guidance_scale: float = 2.0,
        sampler: str = "dpmpp_2m",
        num_inference_steps: int = 8,
    ) -> list[str]:
        """Write an image on the grid of a mask file, a NIfTI file per modality; returns their paths.

        Intensities are those of a typical scan of the cohort: -1 and 1 become the medians of the lower and upper limits
        of the training scans.

        Args:
            mask: NIfTI file with the label values of the cohort.
            output_dir: created if it does not exist.
            seed: seed of the noise; masks of one shape get the same noise from the same seed.
            guidance_scale: 0 ignores the mask, 1 is the plain conditional model, more exaggerates the mask.
            sampler, num_inference_steps: the sampler and its steps.

        Raises:
            UserError: the mask has a value that the cohort does not have.
        """
        image: Any = nib.load(mask)
        grid = self.card.preprocessing.grid
        indices = self.card.schema.to_indices(np.asanyarray(image.dataobj), mask)
        geometry = grid.locate(indices.shape, image.affine)
        placed = grid.place_label(indices, geometry)
        sampling = Sampling(sampler, num_inference_steps)
        volumes = self.sample(placed, seed, Guidance(guidance_scale), sampling, grid.inside(geometry))
        stem, written = Path(mask).name.removesuffix(".gz").removesuffix(".nii"), []
        for number, (volume, (low, high)) in enumerate(zip(volumes, self.card.scale, strict=True)):
            values = low + (volume.astype(np.float64) + 1) / 2 * (high - low)
            restored = grid.restore(values, geometry, low).astype(np.float32)
            path = Path(output_dir, f"{stem}_{number:04d}.nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, restored, image.affine, NOTE + (", phantom" if self.card.phantom else ""))
            written.append(str(path))
        return written
