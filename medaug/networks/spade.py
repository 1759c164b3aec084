"""MONAI's SPADE U-Net: the condition modulates the decoder (Park et al. 2019; Wang et al. 2022 for diffusion)."""

from __future__ import annotations

import torch
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets import SPADEDiffusionModelUNet
from torch import Tensor, nn

from medaug.networks.conditional import ConditionalUNet, UNetShape, add_attributes, checkpoint_blocks
from medaug.networks.layers import replace_layers


class SpadeUNet(ConditionalUNet):
    """A U-Net whose decoder normalisations are scaled and shifted by convolutions of the condition's planes.

    The encoder sees x alone. The planes are resized to each level by nearest neighbour, so that only the first level is
    certain to see a small lesion.

    MONAI normalises scale and shift over each sample's positions, unlike Park et al. (eq. 1 and figure 3). That would
    remove everything that is constant in space, such as the known flags, so these normalisations are removed here.

    Raises:
        ValueError: there are no planes.
    """

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__(shape, in_channels, condition_channels, attribute_channels)
        if not condition_channels:
            raise ValueError("network.name=spade: this task has no condition planes; use network=unet3d")
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
        x, planes, positions = inputs.split(self.parts, dim=1)
        return self.unet(torch.cat([x, positions], dim=1), steps, seg=planes, class_labels=attributes)
