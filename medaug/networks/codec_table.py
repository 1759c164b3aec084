"""The table of codecs, and how each is built from its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medaug.networks.autoencoder import LatentCodec
from medaug.networks.codecs import BlockCodec, Codec, Stride
from medaug.options import CodecOptions
from medaug.tables import Table


@dataclass(frozen=True)
class CodecType:
    """An entry of `CODECS`.

    Attributes:
        build: function of stride, image channels and options that returns a codec, neither trained nor fitted.
        halvings: how often the codec halves the sides.
    """

    build: Callable[[Stride, int, CodecOptions], Codec]
    halvings: Callable[[CodecOptions], int]


IDENTITY = CodecType(
    build=lambda stride, channels, options: BlockCodec(stride, channels),
    halvings=lambda options: 0,
)
HAAR = CodecType(
    build=lambda stride, channels, options: BlockCodec(stride, channels),
    halvings=lambda options: options.levels,
)
KL = CodecType(
    build=lambda stride, channels, options: LatentCodec(stride, channels, options.channels, options.latent_channels),
    halvings=lambda options: len(options.channels) - 1,
)
CODECS: Table[CodecType] = Table("codecs", "codec", CodecType, key="codec.name")


def codec_stride(options: CodecOptions, spatial_dims: int) -> Stride:
    """Voxels per block along each axis; 1 along the third axis with a 2D network."""
    side = 2 ** CODECS[options.name].halvings(options)
    return side, side, side if spatial_dims == 3 else 1


def build_codec(options: Mapping[str, Any], image_channels: int, spatial_dims: int) -> Codec:
    """Build a codec from plain `codec` options. It is not fitted yet, and `kl` is untrained.

    Args:
        options: keys of `CodecOptions`; absent ones have their defaults.
        image_channels: number M of image channels.
        spatial_dims: dimensions of the network; with 2, each axial slice is encoded by itself.

    Raises:
        UserError: there is no codec of that name.
    """
    chosen = CodecOptions(**options)
    return CODECS[chosen.name].build(codec_stride(chosen, spatial_dims), image_channels, chosen)
