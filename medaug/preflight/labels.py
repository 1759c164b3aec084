"""Faults of the values of a label: outside the schema, not whole, nothing there, or there where no body is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.schema import IGNORE, ROUNDING, LabelSchema, foreground, shown_value
from medaug.errors import UserError

_SURELY_ROUNDING = 1e-4  # what single precision loses of 255; more comes from a coarse scale factor
OUTSIDE_SHARE = 0.5
"""More of a label's foreground outside the body than this wants a look."""


def class_indices(
    case: str, name: str, array: NDArray[Any], schema: LabelSchema
) -> tuple[list[Finding], NDArray[np.uint8] | None]:
    """Find values that are not whole numbers or not in the schema, and a label without foreground.

    Returns:
        The findings, and the class indices where the values allow.
    """
    findings = []
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity minus itself
            distance = np.abs(array - np.rint(array))
        broken = array[~(distance <= ROUNDING)]
        if broken.size:
            shown = ", ".join(map(shown_value, np.unique(broken)[:5]))
            what = f"label {name} holds values that are not whole numbers ({shown}; in {broken.size} voxels)"
            remedy = "resample it again with nearest neighbour, or convert it to integers"
            return [Finding(case, "error", "label-not-whole", what, remedy)], None
        if distance.max() > _SURELY_ROUNDING:
            what = f"label {name} holds {shown_value(array.flat[distance.argmax()])} and the like for whole numbers"
            remedy = "store it as integers without a scale factor; the nearest whole numbers are read"
            findings.append(Finding(case, "note", "label-rounded", what, remedy))
    try:
        indices = schema.to_indices(array, f"label {name}")
    except UserError as error:
        return [Finding.from_error(case, "label-outside-schema", error)], None
    if not foreground(indices).any():
        what = f"label {name} is background only"
        findings.append(Finding(case, "warning", "empty-label", what, "make sure that there is nothing to label"))
    return findings, indices


def classes(indices: NDArray[np.uint8], schema: LabelSchema) -> frozenset[str]:
    """Names of the classes that occur among class indices, background included, ignored voxels left out."""
    found = np.flatnonzero(np.bincount(indices.ravel(order="K")))
    return frozenset(schema.names[index] for index in found if index != IGNORE)


def check_place(
    case: str, name: str, indices: NDArray[np.uint8], body: NDArray[np.bool_], thinning: tuple[slice, ...]
) -> Iterator[Finding]:
    """Find a label most of which lies outside the body.

    Args:
        case: name of the case.
        name: of the label file.
        indices: (X, Y, Z) class indices.
        body: mask of the image, `thinning` of its voxels.
        thinning: a slice with a step per axis.
    """
    where = np.nonzero(foreground(indices))
    if not where[0].size:
        return
    inside = body[tuple(index // axis.step for index, axis in zip(where, thinning, strict=True))]
    share = 1 - float(inside.mean())
    if share > OUTSIDE_SHARE:
        what = f"label {name} lies outside the body for {share:.0%} of its foreground"
        remedy = "view it over its image: it may be another case's, flipped or shifted"
        yield Finding(case, "warning", "label-outside-body", what, remedy)
