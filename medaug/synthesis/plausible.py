"""What makes a mask plausible, measured on training masks: volumes, topology, and contact with the grid's border."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from skimage.measure import euler_number, label

from medaug.cohort.schema import foreground
from medaug.synthesis.masks import Label, Reason, touches_border

_COMMON = 0.05
"""A topology is plausible if at least this share of the training masks has it, or if it is the most frequent one."""


@dataclass(frozen=True)
class Limits:
    """The limits within which a mask is plausible.

    Attributes:
        volumes: smallest and largest number of voxels in a training mask, by class index.
        topologies: plausible topologies by class index, and under "0" those of the whole foreground. A topology is a
            number of pieces (26-connected) and an Euler number, which is pieces minus tunnels plus cavities.
        at_border: whether any training mask touches the border of the grid.
    """

    volumes: Mapping[str, Sequence[int]]
    topologies: Mapping[str, Sequence[Sequence[int]]]
    at_border: bool

    @classmethod
    def fit(cls, labels: Sequence[Label]) -> Limits:
        """Measure the limits on training masks."""
        classes = np.unique(np.concatenate([np.unique(mask[foreground(mask)]) for mask in labels])).tolist()
        counts = {value: [int((mask == value).sum()) for mask in labels] for value in classes}
        found = {value: Counter(_topology(mask, value) for mask in labels) for value in (0, *classes)}
        return cls(
            {str(value): [min(numbers), max(numbers)] for value, numbers in counts.items()},
            {str(value): _common(counter, len(labels)) for value, counter in found.items()},
            any(touches_border(mask) for mask in labels),
        )

    def scaled(self, factors: Sequence[float]) -> Limits:
        """The limits of masks whose volumes were multiplied by a factor between these two."""
        low, high = min(factors[0], 1), max(factors[1], 1)
        volumes = {value: [round(low * least), round(high * most)] for value, (least, most) in self.volumes.items()}
        return replace(self, volumes=volumes)

    def rejection(self, mask: Label) -> Reason | None:
        """Why a mask is not plausible; None if it is."""
        for value, (least, most) in self.volumes.items():
            if not least <= (number := int((mask == int(value)).sum())) <= most:
                return Reason(f"class {value} has {number} voxels, and {least} to {most} in training masks", "volume")
        for value, plausible in self.topologies.items():
            pieces, euler = _topology(mask, int(value))
            if [pieces, euler] not in plausible:
                part = f"class {value}" if int(value) else "the foreground"
                return Reason(f"{part} has {pieces} pieces and Euler number {euler}, unlike training masks", "topology")
        if touches_border(mask) and not self.at_border:
            return Reason("the mask was cut by the border", "border")
        return None

    def to_dict(self) -> dict[str, Any]:
        """The limits as JSON values."""
        return asdict(self)


def _topology(mask: Label, value: int) -> tuple[int, int]:
    part = mask == value if value else foreground(mask)
    box = np.argwhere(part)
    if not len(box):
        return 0, 0
    part = part[tuple(slice(a, b + 1) for a, b in zip(box.min(axis=0), box.max(axis=0), strict=True))]
    return int(label(part, connectivity=3).max()), int(euler_number(part, connectivity=3))


def _common(counter: Counter[tuple[int, int]], number: int) -> list[list[int]]:
    most = counter.most_common(1)[0][0]
    return [list(one) for one, count in sorted(counter.items()) if count >= _COMMON * number or one == most]
