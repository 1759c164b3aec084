"""Label values in files, their names, and the contiguous class indices that networks see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medaug.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_UNKNOWN = 255  # marks values outside the schema in the lookup table, so a schema holds at most 255 classes


@dataclass(frozen=True)
class LabelSchema:
    """The classes of a cohort: `labels` holds (value in files, name) pairs, background (value 0) first.

    Raises:
        UserError: background is missing or not first, a name or value occurs twice, a value leaves 0..255.
    """

    labels: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        """Refuse a schema that could not be turned into class indices and back."""
        _validate(self.labels, "labels")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str], source: str = "labels") -> LabelSchema:
        """Read {"0": "background", "1": "Anterior"} (the `labels` of an MSD dataset.json), sorted by value.

        Raises:
            UserError: names `source` and what is wrong.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f'{source}: labels is not a mapping; write it as {{"0": "background", "1": "lesion"}}')
        labels = []
        for key, name in mapping.items():
            # ASCII digits only: int() would also take "1_0" and other scripts' digits.
            if not (str(key).isascii() and str(key).isdigit()):
                raise UserError(f'{source}: label value "{key}" is not a whole number; write {{"1": "name"}}')
            labels.append((int(key), name))
        labels.sort(key=lambda label: label[0])
        _validate(labels, source)
        return cls(tuple(labels))

    def to_mapping(self) -> dict[str, str]:
        """Return the inverse of `from_mapping`."""
        return {str(value): name for value, name in self.labels}

    @property
    def values(self) -> tuple[int, ...]:
        """Values in files, in the order of class indices."""
        return tuple(value for value, _ in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, background first."""
        return tuple(name for _, name in self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels)

    @property
    def foreground(self) -> tuple[str, ...]:
        """Class names without background."""
        return self.names[1:]

    def to_indices(self, array: ArrayLike, source: str) -> NDArray[np.uint8]:
        """Map file values to class indices 0..num_classes-1 (0 = background), same shape, uint8.

        Raises:
            UserError: names `source` and the values that are not in the schema (or not whole numbers).
        """
        import numpy as np

        raw = np.asarray(array)
        lookup = np.full(256, _UNKNOWN, dtype=np.uint8)
        lookup[list(self.values)] = range(self.num_classes)
        with np.errstate(invalid="ignore"):  # NaN becomes some byte and then differs from itself
            rounded = np.clip(raw, 0, 255).astype(np.uint8)
        indices = lookup[rounded]
        wrong = (rounded != raw) | (indices == _UNKNOWN)
        if wrong.any():
            found = np.unique(raw[wrong])
            shown = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
            known = ", ".join(f"{value} {name}" for value, name in self.labels)
            raise UserError(
                f"{source}: label values {shown} are not in the schema ({known}); mend the file or add them"
            )
        return np.asarray(indices)

    def to_values(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Map class indices 0..num_classes-1 back to file values, same shape, uint8."""
        import numpy as np

        return np.take(np.array(self.values, dtype=np.uint8), np.asarray(indices))


def _validate(labels: Any, source: str) -> None:
    for value, name in labels:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{source}: label {value} has no name; give every value a name")
        if not 0 <= value <= 255:
            raise UserError(f"{source}: label value {value} ({name}) is outside 0..255; renumber the labels")
    for what, items in (("value", [v for v, _ in labels]), ("name", [n for _, n in labels])):
        twice = sorted({str(item) for item in items if items.count(item) > 1})
        if twice:
            raise UserError(f"{source}: label {what} {', '.join(twice)} occurs twice; make each {what} unique")
    if not labels or labels[0][0] != 0 or labels[0][1].casefold() != "background":
        raise UserError(f'{source}: labels lack the background; add "0": "background"')
    if len(labels) > _UNKNOWN:
        raise UserError(f"{source}: {len(labels)} labels; at most {_UNKNOWN} are supported, merge some")
