"""A model of patches, used on whole volumes by overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from medaug.diffusion.inpainting import Inpainting
from medaug.diffusion.windows import Box, Windows, place, scaled
from medaug.networks.codecs import Codec, crop
from medaug.networks.condition import Condition


class Inputs(NamedTuple):
    """The conditions of a batch, in voxels: the arguments of `DiffusionModel.condition`."""

    label: Tensor
    known: Tensor
    images: Tensor
    images_known: Tensor
    attributes: Tensor
    field_of_view: Tensor

    def of(self, box: Box, device: str) -> Inputs:
        """The inputs in a box of voxels, on a device."""
        volumes = {name: getattr(self, name)[(..., *box)] for name in ("label", "images", "field_of_view")}
        parts = self._replace(**volumes)
        return Inputs(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class WindowedModel:
    """Denoises, encodes and decodes whole volumes, of which only one window at a time is on the model's device.

    Inputs and results are in main memory. In each window, all samples of a batch are computed together.

    Attributes:
        windows: windows in codec space.
        codec: codec of the model.
        condition: see `DiffusionModel.condition`.
        network: see `DiffusionModel.denoise`.
        inpainting: windows without a voxel of its region are not denoised, because there x_0 is known; None: all are.
    """

    windows: Windows
    codec: Codec
    condition: Callable[..., Condition]
    network: Callable[[Tensor, Tensor, Condition], Tensor]
    inpainting: Inpainting | None = None

    def denoise(self, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
        """The estimate of x_0 given x_t = x (B, C, ...) in codec space, fused over the windows."""
        device, stride = str(self.codec.mean.device), self.codec.stride

        def one(box: Box) -> Tensor:
            if (known := self._known(box)) is not None:
                return known.repeat(len(x) // len(known), 1, 1, 1, 1)  # guidance doubles the batch
            condition = self.condition(*inputs.of(scaled(box, stride), device))
            located = condition._replace(place=place(box, self.windows.grid).to(device).expand(len(x), -1))
            return self.network(x[(..., *box)].to(device), t.to(device), located)

        return self.windows.fuse(one)

    def _known(self, box: Box) -> Tensor | None:
        """The code of a window in which there is nothing to inpaint."""
        if self.inpainting is None:
            return None
        voxels = scaled(box, self.codec.stride)
        if self.inpainting.region[(..., *voxels)].any():
            return None
        return self.codec.encode(self.inpainting.known[(..., *voxels)].to(self.codec.mean.device))

    def encode(self, image: Tensor) -> Tensor:
        """The code of an image (B, M, X, Y, Z)."""
        stride, device = self.codec.stride, self.codec.mean.device
        return self.windows.fuse(lambda box: self.codec.encode(image[(..., *scaled(box, stride))].to(device)))

    def decode(self, code: Tensor, shape: Sequence[int]) -> Tensor:
        """The image of a code, cropped to its shape X, Y, Z."""
        device = self.codec.mean.device
        image = self.windows.fuse(lambda box: self.codec.decode(code[(..., *box)].to(device)), self.codec.stride)
        return crop(image, shape)
