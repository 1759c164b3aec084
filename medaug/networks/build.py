"""From the options of a network to the network."""

from __future__ import annotations

from typing import Any

from medaug.networks.conditional import ConditionalUNet, UNetShape
from medaug.tables import Table

NETWORKS: Table[type[ConditionalUNet]] = Table(
    "networks",
    "network",
    ConditionalUNet,
    key="network.name",
    classes=True,
)

AUTOMATIC_STEM = 32
LARGEST_BLOCK_WITHOUT_STEM = 8


def build_network(
    options: dict[str, Any], in_channels: int, condition_channels: int, attribute_channels: int, block: int
) -> ConditionalUNet:
    """An untrained network.

    Args:
        options: the plain `network` node; keys that an older checkpoint lacks have the value that they had then.
        in_channels: channels of x in codec space.
        condition_channels: channels of the condition's planes, 0 for none.
        attribute_channels: length of the condition's attributes, 0 for none.
        block: voxels per block of the codec. `stem` null adds a stem where that is above 8, since each voxel of a block
            is a plane of its own.

    Raises:
        UserError: an unknown name.
        ValueError: names the key of what cannot be built.
    """
    rest = dict(options)
    kind = NETWORKS[rest.pop("name", "unet")]
    if (stem := rest.pop("stem", None)) is None:
        stem = AUTOMATIC_STEM if block > LARGEST_BLOCK_WITHOUT_STEM else 0
    elif stem and not condition_channels:
        raise ValueError(f"network.stem={stem}: this task has no condition for a stem; leave it out")
    channels, attention = tuple(rest.pop("channels")), tuple(rest.pop("attention"))
    shape = UNetShape(channels=channels, attention=attention, stem=stem, **rest)
    return kind(shape, in_channels, condition_channels, attribute_channels)
