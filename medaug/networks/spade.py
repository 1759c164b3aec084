"""MONAI's SPADE U-Net: the condition modulates the decoder (Park et al. 2019; Wang et al. 2022 for diffusion)."""

from __future__ import annotations

import torch
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets import SPADEDiffusionModelUNet
from torch import Tensor, nn

from medaug.networks.conditional import ConditionalUNet, UNetShape, add_attributes, checkpoint_blocks
from medaug.networks.layers import replace_layers


class SpadeUNet(ConditionalUNet):
    """Every normalisation of the decoder is scaled and shifted by what convolutions make of the condition's planes.

    The encoder sees x alone. At each level the planes are resized to it by taking the nearest position, so that of a
    small lesion only the first level is sure to hear.

    MONAI normalises scale and shift over each sample's positions, which Park et al. (eq. 1 and figure 3) do not. That
    would delete all that is constant in space, the known flags above all, so these normalisations are taken out.

    Raises:
        ValueError: there are no planes.
    """

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__(shape, in_channels, condition_channels, attribute_channels)
        if not condition_channels:
            raise ValueError("network.name=spade: this task has no condition to modulate with; use network=unet3d")
        x, planes, last = self.parts
        self.unet = SPADEDiffusionModelUNet(
            in_channels=x + last,
            out_channels=x,
            label_nc=planes,
            spade_intermediate_channels=shape.channels[0],
            **shape.monai(),
        )
        for module in self.unet.modules():
            if isinstance(module, SPADE):
                module.mlp_gamma.adn = module.mlp_beta.adn = nn.Identity()
        replace_layers(self.unet)
        add_attributes(self.unet, attribute_channels)
        if shape.gradient_checkpointing:
            checkpoint_blocks(self.unet)

    def run(self, inputs: Tensor, steps: Tensor, attributes: Tensor | None) -> Tensor:
        """See `ConditionalUNet.run`."""
        x, planes, places = inputs.split(self.parts, dim=1)
        return self.unet(torch.cat([x, places], dim=1), steps, seg=planes, class_labels=attributes)
