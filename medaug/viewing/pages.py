"""A folder of pages that show volumes in a browser, from the file system and without a network."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE
from medaug.errors import UserError
from medaug.files import atomic_write, put_folder, temporary_folder
from medaug.pictures.figures import class_colour
from medaug.viewing.viewer import SCRIPT, viewer_files

PAGE = "index.html"


@dataclass(frozen=True)
class Panel:
    """A volume to show.

    Attributes:
        title: text above it.
        images: one volume (X, Y, Z) per modality.
        affine: (4, 4), voxel indices to RAS mm.
        label: class indices (X, Y, Z) or IGNORE; None: no overlay.
    """

    title: str
    images: Sequence[NDArray[Any]]
    affine: NDArray[np.float64]
    label: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Item:
    """What one page shows: a pair with its host, or an image of a reading set."""

    name: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Book:
    """What all pages of a folder share.

    Attributes:
        title: heading.
        modalities: names, in the order of `Panel.images`.
        classes: names of the classes from 1, for the legend.
        choices: (key, value, text) of each answer; the key is the letter that gives it.
        saved: name of the file that the page saves, and what is in it besides the answers.
        entries: key of the answers in that file.
        notes: whether an item can have a note.
    """

    title: str
    modalities: Sequence[str]
    classes: Sequence[str]
    choices: Sequence[tuple[str, str, str]]
    saved: tuple[str, Mapping[str, Any]]
    entries: str
    notes: bool


def write_pages(out: Path, book: Book, names: Sequence[str], items: Iterable[Item]) -> None:
    """Write a folder with the page, the viewer and a file of data per item; it is complete or absent.

    Args:
        out: the folder, which must not exist yet.
        book: what all pages share.
        names: names of the items, in the order of the pages.
        items: made one by one, so that only one is in memory.

    Raises:
        UserError: the folder exists, the viewer is missing, the disk is full, or a volume cannot be read.
    """
    if out.exists():
        raise UserError("exists already", "choose a folder that does not, with out=DIR", path=out)
    viewer = viewer_files()
    with temporary_folder(out) as unfinished:
        (unfinished / "items").mkdir(parents=True)
        for number, item in enumerate(items):
            _write(unfinished / "items" / f"{number:05d}.js", f"medaugShow({_json(_content(item))});\n".encode())
        for name, content in viewer.items():
            _write(unfinished / name, content)
        _write(unfinished / PAGE, _page(book, names).encode())
        put_folder(unfinished, out)


def _page(book: Book, names: Sequence[str]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("medaug.viewing") / "page.html.jinja").read_text("utf-8"))
    legend = [(name, _rgb(index)) for index, name in enumerate(book.classes, start=1)]
    content = {
        "names": list(names),
        "modalities": list(book.modalities),
        "colours": [rgb for _, rgb in legend],
        "choices": [list(choice) for choice in book.choices],
        "file": book.saved[0],
        "frame": dict(book.saved[1]),
        "entries": book.entries,
    }
    return template.render(book=book, legend=legend, viewer=SCRIPT.name, content=_json(content))


def _rgb(index: int) -> list[int]:
    return [round(255 * part) for part in to_rgb(class_colour(index))]


def _content(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "at": _centre(item.panels[0]),
        "panels": [
            {
                "title": panel.title,
                "images": [_nifti(image, panel.affine) for image in panel.images],
                "label": None if panel.label is None else _nifti(_shown(panel.label), panel.affine),
            }
            for panel in item.panels
        ],
    }


def _centre(panel: Panel) -> list[float]:
    """The middle of the mask, or of the volume without one, as shares of the sides along R, A and S."""
    label = np.zeros(panel.images[0].shape, np.uint8) if panel.label is None else _shown(panel.label)
    upright = np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(label, panel.affine)).dataobj)
    if not upright.any():
        return [0.5, 0.5, 0.5]
    return [
        (float(np.median(places)) + 0.5) / side for places, side in zip(upright.nonzero(), upright.shape, strict=True)
    ]


def _shown(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(label == IGNORE, np.uint8(0), label)


def _nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """A volume as a compressed NIfTI file in base64, whose header says nothing but its geometry."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)).decode()


def _json(value: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
