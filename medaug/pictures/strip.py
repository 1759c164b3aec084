"""The denoising strip: how one sample develops from noise, as a picture and as a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medaug.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 160  # minimum pixels of the longer side of a slice
SECONDS = 0.25  # duration of a frame of the GIF; the last frame is shown eight times as long


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers 0 ... count - 1, evenly spread and in order, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(wanted, count))})


def denoising_strip(frames: Sequence[tuple[float, NDArray[Any]]], z: int, stem: Path) -> None:
    """Write `stem`.png, the frames side by side, and `stem`.gif, one after the other.

    Slices are axial and shown as radiologists do: front up, the patient's right on the left.

    Args:
        frames: (time, volume (X, Y, Z) in [-1, 1]) from noise to image.
        z: index of the axial slice to show.
        stem: path of both files without suffix.
    """
    from PIL import Image

    tiles = [_tile(volume[..., z], f"t = {time:.2f}") for time, volume in frames]
    width, height = tiles[0].size
    picture = Image.new("L", (width * len(tiles), height), 255)
    for i, tile in enumerate(tiles):
        picture.paste(tile, (i * width, 0))
    with atomic_write(stem.with_suffix(".png")) as temporary:
        picture.save(temporary, format="PNG")
    durations = [int(1000 * SECONDS)] * (len(tiles) - 1) + [int(8000 * SECONDS)]
    with atomic_write(stem.with_suffix(".gif")) as temporary:
        tiles[0].save(
            temporary, format="GIF", save_all=True, append_images=tiles[1:], duration=durations, loop=0, optimize=False
        )


def _tile(plane: NDArray[Any], caption: str) -> Image:
    """A grey slice, enlarged by a whole number, below its caption."""
    from PIL import Image, ImageDraw

    grey = np.rint((np.clip(plane, -1, 1) + 1) * 127.5).astype(np.uint8)
    factor = -(-SIDE // max(grey.shape))
    shown = grey.T[::-1, ::-1].repeat(factor, 0).repeat(factor, 1)
    margin = 16
    tile = Image.new("L", (shown.shape[1] + 2, shown.shape[0] + margin), 255)
    tile.paste(Image.fromarray(shown), (1, margin))
    ImageDraw.Draw(tile).text((4, 2), caption, fill=0)
    return tile
