"""The table of networks, and building one from its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medaug.networks.conditional import ConditionalUNet, UNetShape
from medaug.tables import Table, read_parameters

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
    """Build an untrained network.

    Args:
        options: the `network` options as a plain dictionary; keys that an older checkpoint lacks get the value that
            was fixed at that time.
        in_channels: number of channels of x in codec space.
        condition_channels: number of channels of the condition's planes, 0 for none.
        attribute_channels: length of the condition's attributes, 0 for none.
        block: voxels per block of the codec. With `stem` null, a stem is added if this is above 8, because each voxel
            of a block makes a plane.

    Raises:
        UserError: an unknown name, or a network that does not read one of its `parameters`.
        ValueError: a network that cannot be built; names the key.
    """
    rest = dict(options)
    name = rest.pop("name", "unet")
    kind, parameters = NETWORKS[name], network_parameters(name, rest.pop("parameters", ()))
    if (stem := rest.pop("stem", None)) is None:
        stem = AUTOMATIC_STEM if block > LARGEST_BLOCK_WITHOUT_STEM else 0
    elif stem and not condition_channels:
        raise ValueError(f"network.stem={stem}: has no effect, this task has no condition planes; leave it out")
    channels, attention = tuple(rest.pop("channels")), tuple(rest.pop("attention"))
    shape = UNetShape(channels=channels, attention=attention, stem=stem, **rest)
    return kind(shape, in_channels, condition_channels, attribute_channels, **parameters)


def network_parameters(name: str, words: Iterable[str]) -> dict[str, float]:
    """A network's own options, from `network.parameters`.

    Raises:
        UserError: an unknown network, or one that does not read an option, or an option outside its range.
    """
    return read_parameters("network.parameters", words, f"the network {name}", NETWORKS[name].options)
