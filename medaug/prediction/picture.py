"""A picture of a model's predictions beside its input and the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE
from medaug.imaging.cases import read_indices
from medaug.imaging.intensity import scale
from medaug.imaging.reading import read_volume
from medaug.pictures.figures import comparison_picture
from medaug.prediction.predictor import file_part
from medaug.prediction.request import Request
from medaug.prediction.scans import Scan, read_truth
from medaug.training.checkpoint import Card
from medaug.training.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 8


def predictions_picture(
    shown: Sequence[tuple[Scan, Path, Mapping[str, str]]],
    card: Card,
    task: Task,
    request: Request,
    title: str,
) -> Figure:
    """One slice per row, all in model space.

    Args:
        shown: per scan, the folder of its results and their file names by kind.
        card, task: card and task of the model.
        request: the request to the model.
        title: heading of the picture.
    """
    rows: list[tuple[Any, ...]] = []
    panels: tuple[str, ...] = ()
    for scan, folder, files in shown:
        of_scan = _rows(scan, {kind: folder / file for kind, file in files.items()}, card, task, request)
        panels = of_scan[0][1]
        rows += [row for row, _ in of_scan]
    return comparison_picture(rows[:MOST_ROWS], title, card.schema.foreground, window=(-1.0, 1.0), panels=panels)


def _rows(
    scan: Scan, files: Mapping[str, Path], card: Card, task: Task, request: Request
) -> list[tuple[tuple[Any, ...], tuple[str, ...]]]:
    """The rows of one scan, each with the names of its panels."""

    def image(kind: str) -> NDArray[np.float32]:
        array = read_volume(files[kind]).array.astype(np.float32)
        return card.preprocessing.apply_image(array[None], scan.affine, scan.placement.box)[0][0]

    def label(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return card.preprocessing.apply_label(indices, scan.placement)

    name = scan.case.name
    if task.target == "label":
        predicted = label(card.schema.to_indices(read_volume(files["label"]).array, files["label"]))
        entropy = card.preprocessing.grid.place(read_volume(files["uncertainty"]).array, scan.placement, fill=0.0)
        placed = scale(entropy, 0.0, math.log(card.schema.num_classes))
        row: list[Any] = [name, scan.image[scan.inputs[0]], predicted, placed]
        panels = ["input", "label", "uncertainty"]
        if (true_label := read_indices(request.manifest, scan.case, scan.grid)) is not None:
            row.append(label(true_label))
            panels.append("truth")
        return [(tuple(row), tuple(panels))]
    are_inputs = set(task.generated) <= set(scan.inputs)
    truth = scan.image[list(task.generated)] if are_inputs else None
    if truth is None and request.truth:
        truth = read_truth(request.manifest, scan, card, task.generated)
    rows = []
    for c, m in enumerate(task.generated):
        kind = file_part(card.modalities[m])
        row = [f"{name}, {card.modalities[m]}"]
        panels = []
        if request.inpainted:
            assert scan.label is not None
            region = label(read_volume(files["region"]).array.astype(np.uint8)) > 0
            around = np.where(region & (scan.label == 0), IGNORE, scan.label)  # the margin in grey
            row += [scan.image[m], around, image(kind)]
            panels = ["scan", "mask and region", "inpainted"]
        else:
            degraded = f"{kind}_degraded"
            shown = m if are_inputs else scan.inputs[0]
            row += [image(degraded) if degraded in files else scan.image[shown], image(kind)]
            panels = ["input", "generated"]
            if request.truth and truth is not None:
                row.append(truth[c])
                panels.append("real")
        rows.append((tuple(row), tuple(panels)))
    return rows
