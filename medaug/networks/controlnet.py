"""MONAI's ControlNet on a frozen unconditional U-Net (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import Tensor

from medaug.networks.conditional import ConditionalUNet, UNetShape, add_attributes, checkpoint_blocks
from medaug.networks.layers import replace_layers


class ControlledUNet(ConditionalUNet):
    """A base that is never trained, and a control: a copy of its encoder that hears the condition and adds to it.

    The control's outputs begin at zero (paper, section 3.1), so that at first the network says exactly what its base
    does. The base's weights come with `adopt`; it has the names of `ConcatUNet`, so a model of no condition gives them,
    and so does one with a condition, which then serves as what it is under the null condition.

    Raises:
        ValueError: there are no planes; in `adopt`, the weights hold no whole base of this shape.
    """

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__(shape, in_channels, condition_channels, attribute_channels)
        if not condition_channels:
            raise ValueError("network.name=controlnet: this task has no condition to control by; use network=unet3d")
        x, planes, last = self.parts
        self.unet = DiffusionModelUNet(in_channels=x + last, out_channels=x, **shape.monai()).requires_grad_(False)
        self.control = ControlNet(
            in_channels=x + last,
            conditioning_embedding_in_channels=planes,
            conditioning_embedding_num_channels=(shape.channels[0],),  # one entry: planes keep the sides that x has
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
        x, planes, places = inputs.split(self.parts, dim=1)
        x = torch.cat([x, places], dim=1)
        down, middle = self.control(x, steps, controlnet_cond=planes, class_labels=attributes)
        return self.unet(x, steps, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle)

    def adopt(self, weights: Mapping[str, Tensor], same_planes: bool = True) -> dict[str, Tensor]:
        """The base, and the control if all of it is there, else a control that begins from the base.

        New attributes, which begin at zero, may be missing of it.
        """
        taken = super().adopt(weights, same_planes)
        if missing := [name for name in self.unet.state_dict() if f"unet.{name}" not in taken]:
            raise ValueError(
                f"it holds no base for this ControlNet ({len(missing)} tensors differ, unet.{missing[0]} the first); "
                "give a model of network=unet3d or unet2d with the same network.* keys"
            )
        new = {name for name in self.state_dict() if name.startswith(("control.", "stem."))}
        if new - {"control.class_embedding.weight"} - taken.keys():
            base = {name.removeprefix("unet."): value for name, value in taken.items() if name.startswith("unet.")}
            known = self.control.state_dict()
            taken = {f"unet.{name}": value for name, value in base.items()}
            taken |= {f"control.{name}": value.clone() for name, value in base.items() if name in known}
        return taken
