"""The codecs by name: which options each reads, how it is checked and how it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from medaug.errors import UserError
from medaug.networks.autoencoder import LatentCodec
from medaug.networks.codecs import BlockCodec, Codec, Stride
from medaug.options import CodecOptions
from medaug.tables import Table


@dataclass(frozen=True)
class CodecType:
    """An entry of `CODECS`.

    Attributes:
        build: stride, image channels and options to a codec that is neither trained nor fitted.
        halvings: how often the codec halves the sides.
        shape: keys of `CodecOptions` that say what the codec is.
        training: keys that say how it is trained before the diffusion; empty: it needs no training.
        check: raises UserError, naming the key, for values that make no codec.
    """

    build: Callable[[Stride, int, CodecOptions], Codec]
    halvings: Callable[[CodecOptions], int]
    shape: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    check: Callable[[CodecOptions], None] = lambda options: None


def _check_haar(options: CodecOptions) -> None:
    if options.levels not in (1, 2, 3):
        raise UserError(f"codec.levels={options.levels}: 1, 2 or 3 levels of the transform are possible")


def _check_kl(options: CodecOptions) -> None:
    if len(options.channels) < 2 or min(options.channels) < 1:
        raise UserError(
            f"codec.channels={list(options.channels)}: at least two levels of at least 1 feature are needed"
        )
    for key, least in (("latent_channels", 1), ("max_steps", 1), ("batch_size", 1), ("kl_weight", 0)):
        value = getattr(options, key)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"codec.{key}={value:g}: at least {least} is needed")
    if not 0 <= options.adversarial_weight < math.inf:
        raise UserError(f"codec.adversarial_weight={options.adversarial_weight:g}: at least 0 is needed", "0 is off")
    if not 0 < options.learning_rate < math.inf:
        raise UserError(f"codec.learning_rate={options.learning_rate:g}: a number above 0 is needed")


IDENTITY = CodecType(
    build=lambda stride, channels, options: BlockCodec(stride, channels),
    halvings=lambda options: 0,
)
HAAR = CodecType(
    build=lambda stride, channels, options: BlockCodec(stride, channels),
    halvings=lambda options: options.levels,
    shape=("levels",),
    check=_check_haar,
)
KL = CodecType(
    build=lambda stride, channels, options: LatentCodec(stride, channels, options.channels, options.latent_channels),
    halvings=lambda options: len(options.channels) - 1,
    shape=("channels", "latent_channels"),
    training=("kl_weight", "adversarial_weight", "max_steps", "batch_size", "learning_rate", "checkpoint"),
    check=_check_kl,
)
CODECS: Table[CodecType] = Table("codecs", "codec", CodecType, key="codec.name")


def check_codec(options: CodecOptions, pretrained: bool = False) -> None:
    """Refuse options that make no codec, and keys that the chosen codec does not read.

    Args:
        options: of the codec.
        pretrained: the codec comes trained from the checkpoint that `init_from` names.

    Raises:
        UserError: names the key, what is wrong, and what is needed.
    """
    kind = CODECS[options.name]
    read, why = {"name", *kind.shape, *kind.training}, f"codec={options.name}"
    if kind.training and pretrained:
        read, why = {"name", *kind.shape}, "init_from, whose codec is used as it is"
    elif kind.training and options.checkpoint is not None:
        read, why = {"name", *kind.shape, "checkpoint"}, "codec.checkpoint, whose codec is used as it is"
    default = CodecOptions()
    for key in (field.name for field in fields(options)):
        if key not in read and getattr(options, key) != getattr(default, key):
            raise UserError(f"codec.{key}={getattr(options, key)}: has no effect with {why}", "leave it out")
    kind.check(options)


def codec_stride(options: CodecOptions, spatial_dims: int) -> Stride:
    """Voxels per block along each axis; with a 2D network 1 along the third axis."""
    side = 2 ** CODECS[options.name].halvings(options)
    return side, side, side if spatial_dims == 3 else 1


def build_codec(options: Mapping[str, Any], image_channels: int, spatial_dims: int) -> Codec:
    """The codec of a plain `codec` node: before `fit` it standardises nothing, and `kl` is untrained.

    Args:
        options: keys of `CodecOptions`; absent ones have their defaults.
        image_channels: M of the images.
        spatial_dims: of the network; with 2 every axial slice is coded by itself.

    Raises:
        UserError: see `check_codec`.
    """
    chosen = CodecOptions(**options)
    check_codec(chosen)
    return CODECS[chosen.name].build(codec_stride(chosen, spatial_dims), image_channels, chosen)
