"""Reads a DICOM series as a volume, with slices ordered by position, or refuses it with a reason.

Distances come only from ImagePositionPatient. SliceThickness, SpacingBetweenSlices, SliceLocation, InstanceNumber and
file names do not reliably give the position of a slice and are not used.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.dicom.headers import Series, scan_in_process
from medaug.dicom.instance import SEGMENTATIONS, Instance, uid_name
from medaug.dicom.mixture import differences, mixture_problems
from medaug.dicom.pixels import PixelError, decode, rescale, rescaled_dtype
from medaug.dicom.problems import EXPORT, Problem, leave_out, minority
from medaug.dicom.stack import Slice, Stack, by_position, slices_of, stack_of
from medaug.errors import UserError
from medaug.imaging.volume import LPS_TO_RAS, Header, Volume

_CONCLUSIVE = {"mixed-orientation", "duplicate-slices", "two-acquisitions"}  # further checks would add nothing
_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"  # RT Dose has rows and columns, but positions its frames differently
_MAX_SIDE = 16384
_COSINES = 1e-3  # headers are often rounded to three or four decimals
_SIDEWAYS = 1e-3  # sideways shift, in mm per mm along the normal, that such rounding can cause


def is_image(series: Series) -> bool:
    """Whether any of its files has image slices, so it is not just a segmentation, dose, report or structure set."""
    return any(map(_has_slices, series.instances))


def series_problems(series: Series) -> list[Problem]:
    """Report why a series is not a volume, from its headers; empty if `read_series` would accept them.

    Codes: not-an-image, colour, absurd-size, cut-short, mixed-objects, mixed-shape, frame-count, mixed-units,
    bad-rescale, no-geometry, bad-orientation, mixed-orientation, mixed-spacing, single-slice, duplicate-slices,
    two-acquisitions, uneven-spacing, shifted-slices, gantry-tilt, gap.
    """
    problems = _object_problems(series)
    if problems:
        return problems
    slices = slices_of(series)
    problems = _value_problems(slices) + (_plane_problems(slices) or _stack_problems(slices))
    if any(problem.code in _CONCLUSIVE for problem in problems):
        return problems
    return mixture_problems(slices) + problems


def series_header(series: Series) -> Header:
    """Return the grid of a series, including missing slices, and the type of its values.

    Raises:
        UserError: as for `read_series` with `on_gap="resample"`, if the headers show the problem.
    """
    _refuse(series, "resample")
    return _header(series, stack_of(slices_of(series)))


def read_series(series: Series, on_gap: str = "refuse") -> Volume:
    """Read a series as one volume.

    Args:
        series: a series that `scan_tree` found.
        on_gap: "refuse" a series with missing slices, or "resample": interpolate them linearly between neighbours.

    Returns:
        The array (columns, rows, slices), ascending along the slices' normal, rescaled: int16 or int32 if slopes and
        intercepts are whole numbers and the range fits, else float32. The affine is RAS mm.

    Raises:
        UserError: "series N: what; remedy" for the first problem. Partial volumes are never returned.
    """
    _refuse(series, on_gap)
    stack = stack_of(slices_of(series))
    header = _header(series, stack)
    try:
        array = _fill(stack, _values(stack, header))
    except PixelError as error:
        raise error.within(series.title) from None
    return Volume(array.transpose(2, 1, 0), stack.affine, array.dtype)


def read_folder(path: str | os.PathLike[str]) -> Volume:
    """Read a multi-frame file, or a folder with exactly one image series, in this process.

    Raises:
        UserError: as for `read_series`, with the path in front; or there is no image series, or there are several; or
            a file cannot be read.
    """
    if not Path(path).exists():
        raise UserError("does not exist", "check the path", path=path)
    tree = scan_in_process(path)
    if tree.unreadable:
        first, reason = tree.unreadable[0]
        raise UserError(reason, f"{EXPORT}, or remove the file", path=first)
    images = [series for series in tree.series if is_image(series)]
    if len(images) != 1:
        titles = ", ".join(one.title for one in images)
        found = f"holds {len(images)} image series ({titles})" if images else "holds no image"
        raise UserError(found, "give a folder with one DICOM series, or a multi-frame file", path=path)
    try:
        return read_series(images[0])
    except UserError as error:
        raise UserError(error.what, error.remedy, code=error.code, path=path) from None


def _refuse(series: Series, on_gap: str) -> None:
    for problem in series_problems(series):
        if problem.severity == "warning":
            continue
        if problem.code == "duplicate-slices":
            problem = _compare_duplicates(slices_of(series), problem)
        if problem.code != "gap" or on_gap == "refuse":
            raise UserError(f"{series.title}: {problem.what}", problem.remedy, code=problem.code)


def _has_slices(instance: Instance) -> bool:
    return bool(instance.rows and instance.columns) and not instance.sop_class.startswith((SEGMENTATIONS, _DOSE))


def _object_problems(series: Series) -> list[Problem]:
    """Find problems of the objects that make it pointless to check planes."""
    instances = series.instances
    if others := [one for one in instances if not _has_slices(one)]:
        what = f"is not an image ({uid_name(others[0].sop_class)})"
        if len(others) < len(instances):
            what = f"holds {len(others)} files that are not images ({uid_name(others[0].sop_class)})"
        return [Problem("not-an-image", what, leave_out(instances, others, "choose an image series"))]
    if odd := minority(instances, lambda one: one.sop_class):
        classes = sorted({uid_name(one.sop_class) for one in instances})
        what = f"mixes objects of {len(classes)} kinds ({', '.join(classes)})"
        return [Problem("mixed-objects", what, leave_out(instances, odd, EXPORT))]
    if odd := [one for one in instances if one.samples != 1 or one.photometric == "PALETTE COLOR"]:
        remedy = leave_out(instances, odd, "choose a greyscale series")
        return [Problem("colour", f"holds colour images in {len(odd)} of {len(instances)} files", remedy)]
    if max(max(one.rows, one.columns) for one in instances) > _MAX_SIDE:
        return [Problem("absurd-size", f"has slices of more than {_MAX_SIDE} pixels a side", EXPORT)]
    if odd := minority(instances, lambda one: (one.columns, one.rows)):
        shapes = Counter((one.columns, one.rows) for one in instances)
        sizes = ", ".join(f"{columns}x{rows}" for (columns, rows), _ in shapes.most_common(3))
        remedy = leave_out(instances, odd, EXPORT)
        return [Problem("mixed-shape", f"mixes slices of different sizes ({sizes})", remedy)]
    if any(one.frames != len(one.planes) and len(one.planes) > 1 for one in instances):
        return [Problem("frame-count", "has a number of frames that differs from its header", EXPORT)]
    if any(one.frames != len(one.planes) for one in instances):
        return [Problem("no-geometry", "has many frames, but no position of each", "convert it by hand")]
    if short := sum(not one.complete for one in instances):
        return [Problem("cut-short", f"has {short} files that end before their pixels do", "copy or export it again")]
    if len(instances) == len(instances[0].planes) == 1:
        return [Problem("single-slice", "is a single slice, not a volume", "give every slice, or leave it out")]
    return []


def _value_problems(slices: Sequence[Slice]) -> list[Problem]:
    planes = [one.plane for one in slices]
    if not all(np.isfinite([plane.slope, plane.intercept]).all() and plane.slope for plane in planes):
        return [Problem("bad-rescale", "has a rescale slope that is zero or not finite", EXPORT)]
    units = {plane.rescale_type for plane in planes if plane.rescale_type}
    is_rescaled = {plane.rescale_type is not None for plane in planes}
    is_partly = len(is_rescaled) > 1 and any((plane.slope, plane.intercept) != (1, 0) for plane in planes)
    if len(units) > 1 or is_partly:
        what = "rescales only some of its slices" if is_partly else f"has values in {len(units)} units"
        return [Problem("mixed-units", what, EXPORT)]
    return []


def _plane_problems(slices: Sequence[Slice]) -> list[Problem]:
    """Find problems that make it impossible to order the slices."""
    planes = [one.plane for one in slices]
    spacings = np.array([plane.pixel_spacing or (np.nan, np.nan) for plane in planes])
    orientations = np.array([plane.orientation or (np.nan,) * 6 for plane in planes])
    positions = np.array([plane.position or (np.nan,) * 3 for plane in planes])
    for keyword, values in (
        ("ImagePositionPatient", positions),
        ("ImageOrientationPatient", orientations),
        ("PixelSpacing", spacings),
    ):
        missing = (~np.isfinite(values)).any(axis=1)
        if missing.any():
            what = f"has no valid {keyword} in {missing.sum()} of {len(planes)} slices"
            remedy = _without(slices, missing, "export the series with its geometry, or convert it by hand")
            return [Problem("no-geometry", what, remedy)]
    if (spacings <= 0).any():
        return [Problem("no-geometry", "has a pixel spacing that is not positive", EXPORT)]
    row, column = orientations[:, :3], orientations[:, 3:]
    errors = [np.linalg.norm(row, axis=1) - 1, np.linalg.norm(column, axis=1) - 1, (row * column).sum(axis=1)]
    if np.abs(errors).max() > _COSINES:
        return [Problem("bad-orientation", "has rows and columns that are not at right angles", EXPORT)]
    problems = []
    if np.ptp(orientations, axis=0).max() > _COSINES:
        odd = _unlike_most(orientations, _COSINES)
        remedy = _without(slices, odd, "export each orientation as its own series")
        problems.append(Problem("mixed-orientation", "mixes slices of different orientations", remedy))
    if (np.ptp(spacings, axis=0) > 1e-4 * spacings[0]).any():
        odd = _unlike_most(spacings, 1e-4 * spacings.max())
        remedy = _without(slices, odd, EXPORT)
        problems.append(Problem("mixed-spacing", "mixes slices of different pixel spacing", remedy))
    return problems


def _unlike_most(values: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """Return which rows (N,) of values (N, M) differ from the most frequent one by more than a tolerance."""
    _, first, counts = np.unique(np.round(values, 2), axis=0, return_index=True, return_counts=True)
    usual = values[first[np.argmax(counts)]]
    return np.asarray(np.abs(values - usual).max(axis=1) > tolerance)


def _without(slices: Sequence[Slice], is_odd: NDArray[np.bool_], otherwise: str) -> str:
    odd = [one.instance for one, flag in zip(slices, is_odd, strict=True) if flag]
    return leave_out([one.instance for one in slices], odd, otherwise)


def _stack_problems(slices: Sequence[Slice]) -> list[Problem]:
    """Find problems of the positions of the slices."""
    groups = by_position(slices)
    if most := max(len(group) for group in groups) - 1:
        return [_shared_position(groups, most + 1)]
    stack = stack_of(slices)
    normal, steps = slices[0].normal, np.diff(stack.indices)
    positions = np.array([one.position for one in stack.slices])
    distances = positions @ normal
    gaps = np.diff(distances)
    step, origin = (LPS_TO_RAS @ stack.affine)[:3, 2:].T
    spacing = float(step @ normal)
    errors = positions - origin - stack.indices[:, None] * step
    along = errors @ normal
    # Positions are often written with one decimal; a tenth of the spacing is too much in any case.
    tolerance = min(max(0.06, 0.01 * spacing), 0.1 * spacing)
    if np.abs(along).max() > tolerance or stack.indices[-1] > 2 * len(steps):
        what = f"has unevenly spaced slices, {gaps.min():.4g} to {gaps.max():.4g} mm apart"
        return [Problem("uneven-spacing", what, "resample it by hand, or leave it out")]
    if (sideways := float(np.linalg.norm(errors - along[:, None] * normal, axis=1).max())) > tolerance:
        what = f"has slices that are shifted sideways by up to {sideways:.3g} mm"
        return [Problem("shifted-slices", what, "correct for the table's or the patient's movement first")]
    problems = []
    if (tilt := float(np.linalg.norm(step - spacing * normal) / spacing)) > _SIDEWAYS:
        what = f"is sheared: its slices are stacked {np.degrees(np.arctan(tilt)):.2g} degrees away from their normal"
        remedy = "correct the gantry tilt first, for example with dcm2niix"
        problems.append(Problem("gantry-tilt", f"{what} (gantry tilt)", remedy))
    if missing := int(steps.sum()) - len(steps):
        after = [
            f"{count - 1} after slice {index + 1} ({gaps[index]:.4g} mm to the next, {spacing:.4g} mm elsewhere)"
            for index, count in enumerate(steps)
            if count > 1
        ]
        more = f" and {len(after) - 3} more gaps" if len(after) > 3 else ""
        what = f"lacks {missing} slice{'s' * (missing > 1)}: {', '.join(after[:3])}{more}"
        problems.append(Problem("gap", what, "export it again, or set on_gap=resample to interpolate"))
    return problems


def _shared_position(groups: Sequence[Sequence[Slice]], most: int) -> Problem:
    """Report several slices at one position: copies, or acquisitions that should be separate series."""
    shared = [group for group in groups if len(group) > 1]
    if all(
        len({one.instance.sop_instance_uid for one in group}) == 1 == len({one.frame for one in group})
        for group in shared
    ):
        return Problem("duplicate-slices", f"holds the same image twice {len(shared)} times", "leave the copies out")
    if differing := differences(shared):
        keywords = ", ".join(differing[:3])
        return _two_acquisitions(most, f"{keywords} differs" if len(differing) == 1 else f"{keywords} differ")
    what = f"holds several slices at one position, at {len(shared)} of {len(groups)} positions"
    return Problem("duplicate-slices", what, "leave the copies out, or export each acquisition as its own series")


def _two_acquisitions(count: int, difference: str) -> Problem:
    what = f"holds {count} acquisitions in one series ({difference})"
    return Problem("two-acquisitions", what, "export each acquisition as its own series")


def _compare_duplicates(slices: Sequence[Slice], problem: Problem) -> Problem:
    """Compare the pixels at one position, because headers do not always distinguish copies from acquisitions."""
    group = next(group for group in by_position(slices) if len(group) > 1)
    try:
        pixels = [decode(one.instance)[one.frame] for one in group]
    except PixelError:
        return problem
    is_copy = all(np.array_equal(pixels[0], other) for other in pixels[1:])
    return problem if is_copy else _two_acquisitions(len(group), "their pixels differ")


def _header(series: Series, stack: Stack) -> Header:
    first = series.instances[0]
    shape = (first.columns, first.rows, int(stack.indices[-1]) + 1)
    return Header(shape, stack.affine, rescaled_dtype(series.instances))


def _values(stack: Stack, header: Header) -> NDArray[Any]:
    """Return rescaled values (slices, rows, columns); missing slices are not initialised."""
    array = np.empty(header.shape[::-1], header.dtype)
    by_file = defaultdict(list)
    for index, one in zip(stack.indices, stack.slices, strict=True):
        by_file[one.instance.path].append((index, one))
    for members in by_file.values():
        frames = decode(members[0][1].instance)
        for index, one in members:
            values = rescale(frames[one.frame], one.plane)
            if array.dtype.kind == "i":
                bounds = np.iinfo(array.dtype)
                if values.min() < bounds.min or values.max() > bounds.max:
                    raise PixelError("has values beyond its BitsStored", EXPORT)
            array[index] = values
    return array


def _fill(stack: Stack, array: NDArray[Any]) -> NDArray[Any]:
    """Interpolate missing slices linearly, in place."""
    for low, high in zip(stack.indices[:-1], stack.indices[1:], strict=True):
        for index in range(low + 1, high):
            weight = (index - low) / (high - low)
            values = (1 - weight) * array[low] + weight * array[high]
            array[index] = np.rint(values) if array.dtype.kind == "i" else values
    return array
