"""Contact sheets, comparisons and plots. Each function returns a matplotlib `Figure`; `save_figure` writes it.

Volumes are (X, Y, Z) with axes to the patient's right, front and head (RAS). Slices are axial and in radiological
orientation: front up, the patient's right on the left. Labels are class indices, 0 = background; ignored voxels are
grey in a mask and have no outline. All images of one figure share one grey scale, so their intensities must share one
range; by default the scale runs from the 0.5 to the 99.5 percentile of all of them. matplotlib is imported on use,
and without pyplot: no window opens, and nothing is kept between calls.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE, foreground
from medaug.evaluation.statistics import Interval
from medaug.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PAIRS = 24
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")  # Okabe & Ito 2008
INK, ACCENT, NEUTRAL = "#222222", "#0072B2", "#8a8a8a"

Array = NDArray[Any]
Window = tuple[float, float]

CaseRow = tuple[str, Sequence[float], Array, Sequence[Array]]
"""(caption, voxel sides in mm, image plane (X, Y), planes of class indices (X, Y) to outline)."""


def class_colour(index: int) -> str | tuple[float, float, float]:
    """The colour of foreground class `index` (from 1), the same in every picture."""
    if index <= len(PALETTE):
        return PALETTE[index - 1]
    return colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1.0)


def contact_sheet(
    rows: Sequence[tuple[str, Array, Array]],
    title: str,
    classes: Sequence[str] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: Window | None = None,
) -> Figure:
    """Pairs in a grid: the image, and the image with its mask outlined, in the slice with the most foreground.

    Args:
        rows: (caption, image, label) of each pair; the first `MAX_PAIRS` are shown.
        title: heading.
        classes: foreground names for the legend.
        spacing: voxel sides in mm, for the aspect.
        window: intensities shown black and white.
    """
    rows = rows[:MAX_PAIRS]
    across = min(4, len(rows))
    axes, figure = _grid(math.ceil(len(rows) / across), 2 * across, rows[0][1].shape, spacing)
    window = window or _window([image for _, image, _ in rows])
    for (plain, outlined), (caption, image, label) in zip(axes.reshape(-1, 2), rows, strict=False):
        z = busiest_slice(label)
        _show(plain, image[..., z], spacing, window)
        _show(outlined, image[..., z], spacing, window)
        _outline(outlined, label[..., z])
        plain.set_title(caption, fontsize=9, loc="left", pad=3)
    _legend(figure, classes)
    figure.suptitle(title, fontsize=11)
    return figure


def comparison_picture(
    rows: Sequence[tuple[Any, ...]],
    title: str = "",
    classes: Sequence[str] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: Window | None = None,
    panels: Sequence[str] = ("mask", "synthetic", "real"),
) -> Figure:
    """Volumes side by side, such as mask, synthetic image and real image, one slice per row.

    Args:
        rows: a caption, then one volume per panel, all of one shape: integers are class indices, other numbers are
            intensities. The slice with the most foreground in the row's last label map is shown; the middle slice if
            there is no label map.
        title: heading.
        classes: foreground names for the legend.
        spacing: voxel sides in mm.
        window: intensities shown black and white.
        panels: names of the columns.
    """
    axes, figure = _grid(len(rows), len(panels), rows[0][1].shape, spacing)
    window = window or _window([v for _, *volumes in rows for v in volumes if v.dtype.kind == "f"])
    for line, (caption, *volumes) in zip(axes, rows, strict=True):
        labels = [volume for volume in volumes if volume.dtype.kind in "iu"]
        z = busiest_slice(labels[-1]) if labels else volumes[0].shape[2] // 2
        for axis, volume in zip(line, volumes, strict=True):
            if volume.dtype.kind in "iu":
                _show_label(axis, volume[..., z], spacing)
            else:
                _show(axis, volume[..., z], spacing, window)
        _row_name(line[0], caption)
    _name_panels(figure, axes, panels, classes, title)
    return figure


def guidance_picture(
    rows: Sequence[tuple[str, Array, Sequence[Array]]],
    guidance_scales: Sequence[float],
    title: str = "",
    classes: Sequence[str] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: Window | None = None,
) -> Figure:
    """The same seed and mask at several guidance scales: a row per seed, a column per scale, mask outlined.

    Args:
        rows: (caption, label, images), one image per guidance scale.
        guidance_scales: the columns.
        title: heading.
        classes: foreground names for the legend.
        spacing: voxel sides in mm.
        window: intensities shown black and white.
    """
    axes, figure = _grid(len(rows), 1 + len(guidance_scales), rows[0][1].shape, spacing)
    window = window or _window([image for _, _, images in rows for image in images])
    for (left, *others), (caption, label, images) in zip(axes, rows, strict=True):
        z = busiest_slice(label)
        _show_label(left, label[..., z], spacing)
        for axis, image in zip(others, images, strict=True):
            _show(axis, image[..., z], spacing, window)
            _outline(axis, label[..., z])
        _row_name(left, caption)
    for axis, name in zip(axes[0], ("mask", *(f"scale {scale:g}" for scale in guidance_scales)), strict=True):
        axis.set_title(name, fontsize=9, pad=3)
    _legend(figure, classes)
    figure.suptitle(title, fontsize=11)
    return figure


def outlined_cases(rows: Sequence[CaseRow], panels: Sequence[str], classes: Sequence[str], title: str = "") -> Figure:
    """A row per scan: the plain image, then the image with the outline of each segmentation.

    Args:
        rows: the scans, each with its own grid and grey scale.
        panels: names of the columns, the first for the plain image.
        classes: foreground names for the legend.
        title: heading.
    """
    largest = max((plane.shape for _, _, plane, _ in rows), key=np.prod)
    axes, figure = _grid(len(rows), len(panels), (*largest, 1), rows[0][1])
    for line, (caption, spacing, image, labels) in zip(axes, rows, strict=True):
        window = _window([image])
        for axis, label in zip(line, [None, *labels], strict=True):
            _show(axis, image, spacing, window)
            if label is not None:
                _outline(axis, label)
        _row_name(line[0], caption)
    _name_panels(figure, axes, panels, classes, title)
    return figure


def dice_plot(arms: Mapping[str, tuple[Array, Interval]]) -> Figure:
    """Plot each case's mean foreground Dice as a dot, per arm, and beside the dots their mean with its interval.

    Args:
        arms: arm -> (values (num_cases,), interval of their mean).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.0 + 0.75 * len(arms)), dpi=150, layout="constrained")
    axis = figure.subplots()
    for place, (values, interval) in enumerate(arms.values()):
        # A fixed irrational stride spreads the dots evenly and the same way in every run.
        jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.35
        axis.plot(values, place + jitter, ".", color=NEUTRAL, alpha=0.6, markersize=5, markeredgewidth=0)
        _interval_bar(axis, interval, place)
    axis.set_yticks(range(len(arms)), list(arms))
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.set_xlabel("mean foreground Dice per case; bar: mean and 95% interval")
    _bare(axis, grid="x")
    return figure


def forest_plot(rows: Sequence[tuple[str, Interval]], xlabel: str) -> Figure:
    """Differences with their intervals, one below the other, and a line at 0.

    Args:
        rows: (name, difference).
        xlabel: what the difference is of, and which side is better.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.1 + 0.45 * len(rows)), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=INK, linewidth=1)
    for place, (_, interval) in enumerate(rows):
        axis.plot([interval.low, interval.high], [place] * 2, color=ACCENT, linewidth=2.5, solid_capstyle="butt")
        axis.plot(interval.mean, place, "o", color=ACCENT, markersize=6)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(xlabel)
    _bare(axis, grid="x")
    return figure


def curve_plot(lines: Mapping[str, Sequence[tuple[float, Interval]]], xlabel: str, ylabel: str) -> Figure:
    """Means with their intervals over a dose, a line per arm; the points of different arms stand beside each other.

    Args:
        lines: points (dose, mean with its interval), by arm.
        xlabel, ylabel: names of the axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    doses = sorted({dose for line in lines.values() for dose, _ in line})
    for number, (name, line) in enumerate(lines.items()):
        places = [doses.index(dose) + 0.08 * (number - (len(lines) - 1) / 2) for dose, _ in line]
        colour = class_colour(number + 1)
        axis.plot(
            places, [point.mean for _, point in line], "o-", color=colour, linewidth=1.2, markersize=5, label=name
        )
        for place, (_, point) in zip(places, line, strict=True):
            axis.plot([place, place], [point.low, point.high], color=colour, linewidth=1.8, solid_capstyle="butt")
    axis.set_xticks(range(len(doses)), [f"{dose:g}" for dose in doses])
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend(frameon=False, fontsize=8)
    _bare(axis, grid="y")
    return figure


def guidance_plot(points: Mapping[float, Interval]) -> Figure:
    """Faithfulness (mean foreground Dice of the judge) against guidance scale, with intervals.

    Args:
        points: guidance scale -> interval.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    scales = sorted(points)
    means = [points[scale].mean for scale in scales]
    axis.vlines(scales, [points[s].low for s in scales], [points[s].high for s in scales], color=ACCENT, linewidth=1.5)
    axis.plot(scales, means, "o-", color=ACCENT, markersize=5)
    axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axis.set_xlabel("guidance scale (0: mask ignored, 1: plain conditional)")
    axis.set_ylabel("mean foreground Dice, judge")
    _bare(axis, grid="y")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def _grid(num_rows: int, num_columns: int, shape: Sequence[int], spacing: Sequence[float]) -> tuple[Any, Figure]:
    """Axes (num_rows, num_columns) without frames; each cell has the proportions of a slice."""
    from matplotlib.figure import Figure

    width = min(1.9, 12 / num_columns)
    height = width * shape[1] * spacing[1] / (shape[0] * spacing[0])
    size = (num_columns * width, num_rows * (height + 0.18) + 0.8)
    figure = Figure(figsize=size, dpi=130, layout="compressed")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return axes, figure


def busiest_slice(label: Array) -> int:
    """The axial slice with the most foreground; the middle one if there is none."""
    area = foreground(label).sum(axis=(0, 1))
    return int(area.argmax()) if area.any() else label.shape[2] // 2


def _window(images: Sequence[Array]) -> Window:
    low, high = np.quantile(np.concatenate([np.ravel(image) for image in images]), [0.005, 0.995])
    return float(low), float(max(high, low + 1e-6))


def _show(axis: Axes, plane: Array, spacing: Sequence[float], window: Window) -> None:
    aspect = spacing[1] / spacing[0]
    axis.imshow(plane.T, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
    _frame(axis, plane)


def _show_label(axis: Axes, plane: Array, spacing: Sequence[float]) -> None:
    from matplotlib.colors import to_rgb

    largest = int(plane.max(initial=0, where=plane != IGNORE))
    names = ["black", *(class_colour(i) for i in range(1, largest + 1)), NEUTRAL]
    colours = np.array([to_rgb(name) for name in names])[np.minimum(plane, largest + 1)]  # IGNORE is the last
    axis.imshow(colours.swapaxes(0, 1), origin="lower", aspect=spacing[1] / spacing[0], interpolation="nearest")
    _frame(axis, plane)


def _frame(axis: Axes, plane: Array) -> None:
    """Fix the axis limits to the slice, whatever is drawn later, with the patient's right on the left."""
    axis.set_xlim(plane.shape[0] - 0.5, -0.5)
    axis.set_ylim(-0.5, plane.shape[1] - 0.5)


def _outline(axis: Axes, plane: Array) -> None:
    for index in np.unique(plane[foreground(plane)]):
        # The zero border closes contours of masks that touch the edge of the slice.
        mask = np.pad((plane == index).T.astype(float), 1)
        x, y = np.arange(-1, plane.shape[0] + 1), np.arange(-1, plane.shape[1] + 1)
        axis.contour(x, y, mask, [0.5], colors=[class_colour(int(index))], linewidths=1.0)


def _row_name(axis: Axes, caption: str) -> None:
    axis.text(-0.06, 0.5, caption, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=8)


def _name_panels(figure: Figure, axes: Any, panels: Sequence[str], classes: Sequence[str], title: str) -> None:
    """Write the title, the names of the columns and the legend of the classes."""
    for axis, name in zip(axes[0], panels, strict=True):
        axis.set_title(name, fontsize=9, pad=3)
    _legend(figure, classes)
    figure.suptitle(title, fontsize=11)


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if classes:
        lines = [Line2D([], [], color=class_colour(i), linewidth=3) for i in range(1, len(classes) + 1)]
        columns = min(len(classes), 6)
        figure.legend(lines, classes, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _interval_bar(axis: Axes, interval: Interval, place: int) -> None:
    axis.plot([interval.low, interval.high], [place + 0.32] * 2, color=ACCENT, linewidth=2.5, solid_capstyle="butt")
    axis.plot(interval.mean, place + 0.32, "o", color=ACCENT, markersize=6)


def _bare(axis: Axes, grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=9)
    axis.grid(axis=grid, color="#e4e4e4", linewidth=0.8)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
