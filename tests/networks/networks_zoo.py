"""Small networks with random weights, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medaug.networks.build import NETWORKS, build_network
from medaug.networks.condition import Condition
from medaug.networks.conditional import ConditionalUNet

NAMES = tuple(NETWORKS)
OPTIONS = {
    "spatial_dims": 3,
    "channels": [8, 16],
    "attention": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 4,
}


def make_net(
    name: str, planes: int = 2, attributes: int = 2, block: int = 1, randomised: bool = True, **options: Any
) -> ConditionalUNet:
    """A network with random weights and outputs of about unit size; MONAI's output convolutions start at zero."""
    torch.manual_seed(0)
    net = build_network(OPTIONS | {"name": name} | options, 3, planes, attributes, block)
    for parameter in net.parameters() if randomised else ():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    return net.eval()


def condition_of(planes: Tensor, attributes: Tensor) -> Condition:
    """The condition, with its parts named."""
    return Condition(planes=planes, attributes=attributes)
