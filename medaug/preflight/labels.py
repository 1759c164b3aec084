"""Problems of a label's values: not in the schema, not whole numbers, background only, or outside the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.schema import IGNORE, ROUNDING, LabelSchema, foreground, shown_value
from medaug.errors import UserError

_SURELY_ROUNDING = 1e-4  # single precision's error at 255; a larger error comes from a coarse scale factor
OUTSIDE_SHARE = 0.5
"""Warn if more than this fraction of a label's foreground is outside the body."""


def class_indices(
    case: str, name: str, array: NDArray[Any], schema: LabelSchema
) -> tuple[list[Finding], NDArray[np.uint8] | None]:
    """Find values that are not whole numbers or not in the schema, and labels without foreground.

    Returns:
        The findings, and the class indices, or None if the values are not valid.
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
            value = shown_value(array.flat[distance.argmax()])
            what = f"label {name} holds values near whole numbers, such as {value}"
            remedy = "store it as integers without a scale factor; the nearest whole numbers were read"
            findings.append(Finding(case, "note", "label-rounded", what, remedy))
    try:
        indices = schema.to_indices(array)
    except UserError as error:
        return [Finding.from_error(case, "label-outside-schema", error.within(f"label {name}"))], None
    if not foreground(indices).any():
        what = f"label {name} is background only"
        findings.append(Finding(case, "warning", "empty-label", what, "make sure that there is nothing to label"))
    return findings, indices


def classes(indices: NDArray[np.uint8], schema: LabelSchema) -> frozenset[str]:
    """Return the names of the classes that occur in class indices, with background, without ignored voxels."""
    found = np.flatnonzero(np.bincount(indices.ravel(order="K")))
    return frozenset(schema.names[index] for index in found if index != IGNORE)


def check_place(
    case: str, name: str, indices: NDArray[np.uint8], body: NDArray[np.bool_], thinning: tuple[slice, ...]
) -> Iterator[Finding]:
    """Find a label that is mostly outside the body.

    Args:
        case: name of the case.
        name: name of the label file.
        indices: (X, Y, Z) class indices.
        body: body mask of the image, thinned.
        thinning: the slice, with a step, that was used along each axis.
    """
    where = np.nonzero(foreground(indices))
    if not where[0].size:
        return
    inside = body[tuple(index // axis.step for index, axis in zip(where, thinning, strict=True))]
    share = 1 - float(inside.mean())
    if share > OUTSIDE_SHARE:
        what = f"label {name} has {share:.0%} of its foreground outside the body"
        remedy = "view it over its image: it may belong to another case, or be flipped or shifted"
        yield Finding(case, "warning", "label-outside-body", what, remedy)
