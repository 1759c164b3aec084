"""MONAI's ControlNet on a frozen unconditional U-Net (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import Tensor

from medaug.networks.conditional import ConditionalUNet, UNetShape, add_attributes, checkpoint_blocks
from medaug.networks.layers import replace_layers


class ControlledUNet(ConditionalUNet):
    """A frozen base and a control: a trained copy of the base's encoder that sees the condition and adds to the base.

    The control's outputs start at zero (paper, section 3.1), so that at first the network's output is exactly that of
    its base. The base's weights come from another model through `matching_weights`. They have the same names as in
    `ConcatUNet`, so that an unconditional model can be the base. A conditional one can be too; it then acts as under
    the null condition.

    Raises:
        ValueError: there are no planes; or, in `matching_weights`, the weights contain no complete base of this shape.
    """

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__(shape, in_channels, condition_channels, attribute_channels)
        if not condition_channels:
            raise ValueError("network.name=controlnet: this task has no condition planes; use network=unet3d")
        x, planes, last = self.parts
        self.unet = DiffusionModelUNet(in_channels=x + last, out_channels=x, **shape.monai()).requires_grad_(False)
        self.control = ControlNet(
            in_channels=x + last,
            conditioning_embedding_in_channels=planes,
            conditioning_embedding_num_channels=(shape.channels[0],),  # one entry: planes keep the size of x
            **shape.monai(),
        )
        replace_layers(self.unet)
        replace_layers(self.control)
        add_attributes(self.control, attribute_channels)
        if shape.gradient_checkpointing:
            checkpoint_blocks(self.unet)
            checkpoint_blocks(self.control)

    def run(self, inputs: Tensor, steps: Tensor, attributes: Tensor | None) -> Tensor:
        """See `ConditionalUNet.run`."""
        x, planes, positions = inputs.split(self.parts, dim=1)
        x = torch.cat([x, positions], dim=1)
        down, middle = self.control(x, steps, controlnet_cond=planes, class_labels=attributes)
        return self.unet(x, steps, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle)

    def matching_weights(self, weights: Mapping[str, Tensor], same_planes: bool = True) -> dict[str, Tensor]:
        """The weights of the base and of the control.

        If weights of the control are missing, apart from those of new attributes, which start at zero, the control is
        initialised from the base.
        """
        matching = super().matching_weights(weights, same_planes)
        if missing := [name for name in self.unet.state_dict() if f"unet.{name}" not in matching]:
            raise ValueError(
                f"it has no base for this ControlNet ({len(missing)} tensors differ, first unet.{missing[0]}); "
                "give a model of network=unet3d or unet2d with the same network.* keys"
            )
        new = {name for name in self.state_dict() if name.startswith(("control.", "stem."))}
        if new - {"control.class_embedding.weight"} - matching.keys():
            base = {name.removeprefix("unet."): value for name, value in matching.items() if name.startswith("unet.")}
            in_control = self.control.state_dict()
            matching = {f"unet.{name}": value for name, value in base.items()}
            matching |= {f"control.{name}": value.clone() for name, value in base.items() if name in in_control}
        return matching
