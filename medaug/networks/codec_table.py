"""The table of codecs, and how each is built from its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medaug.networks.autoencoder import LatentCodec
from medaug.networks.codecs import BlockCodec, Codec, Stride
from medaug.options import CodecOptions
from medaug.tables import Ranges, Table, read_parameters


@dataclass(frozen=True)
class CodecType:
    """An entry of `CODECS`.

    Attributes:
        build: function of stride, image channels and options that returns a codec, neither trained nor fitted.
        halvings: function of the options that returns how often the codec halves the sides.
        options: range of the codec's own options, which `codec.parameters` sets and both functions get by name.
        defaults: values that codec=NAME gives to other keys of `codec`.
    """

    build: Callable[..., Codec]
    halvings: Callable[..., int]
    options: Ranges = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self, options: CodecOptions) -> dict[str, float]:
        """The codec's own options.

        Raises:
            UserError: the codec does not read one of them, or it is outside its range.
        """
        return read_parameters("codec.parameters", options.parameters, f"the codec {options.name}", self.options)


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
    codec = CODECS[options.name]
    side = 2 ** codec.halvings(options, **codec.parameters(options))
    return side, side, side if spatial_dims == 3 else 1


def build_codec(options: Mapping[str, Any], image_channels: int, spatial_dims: int) -> Codec:
    """Build a codec from plain `codec` options. It is not fitted yet, and `kl` is untrained.

    Args:
        options: keys of `CodecOptions`; absent ones have their defaults.
        image_channels: number M of image channels.
        spatial_dims: dimensions of the network; with 2, each axial slice is encoded by itself.

    Raises:
        UserError: there is no codec of that name, or it does not read one of its `parameters`.
    """
    chosen = CodecOptions(**options)
    codec = CODECS[chosen.name]
    return codec.build(codec_stride(chosen, spatial_dims), image_channels, chosen, **codec.parameters(chosen))
