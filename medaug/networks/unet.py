"""MONAI's diffusion U-Net, conditioned by concatenation."""

from __future__ import annotations

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor

from medaug.networks.conditional import ConditionalUNet, UNetShape, add_attributes, checkpoint_blocks
from medaug.networks.layers import replace_layers


class ConcatUNet(ConditionalUNet):
    """A U-Net that gets the condition's planes as further input channels; without planes it is unconditional."""

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__(shape, in_channels, condition_channels, attribute_channels)
        self.unet = DiffusionModelUNet(in_channels=sum(self.parts), out_channels=in_channels, **shape.monai())
        replace_layers(self.unet)
        add_attributes(self.unet, attribute_channels)
        if shape.gradient_checkpointing:
            checkpoint_blocks(self.unet)

    def run(self, inputs: Tensor, steps: Tensor, attributes: Tensor | None) -> Tensor:
        """See `ConditionalUNet.run`."""
        return self.unet(inputs, steps, class_labels=attributes)
