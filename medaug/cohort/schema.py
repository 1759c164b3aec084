"""`LabelSchema`: label values in files, their names, and the consecutive class indices that networks use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from medaug.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

IGNORE = 255
"""Class index of voxels that nobody labelled: they count in no loss and in no score."""

ROUNDING = 0.01
"""Label values this close to a whole number are rounded to it: a header's slope causes such rounding errors."""

_LARGEST = 255  # largest value in a file; class indices end below IGNORE
_MOST_SHOWN = 5  # unknown values listed in a message
_CHUNK = 1 << 20  # voxels mapped at a time


@overload
def foreground(indices: NDArray[Any]) -> NDArray[np.bool_]: ...
@overload
def foreground(indices: Tensor) -> Tensor: ...
def foreground(indices: Any) -> Any:
    """True where class indices (any shape) are neither background (0) nor `IGNORE`."""
    return (indices != 0) & (indices != IGNORE)


@dataclass(frozen=True)
class LabelSchema:
    """What the values of a cohort's label files mean.

    Attributes:
        labels: (value in files, name) of each class, background (value 0) first; the order gives the class indices.
        regions: (name, values of its classes); if there are any, they are scored instead of the classes.
        ignore: value of voxels that nobody labelled; it is not a class.
        remap: (value in files, value of the class that it is read as, or `ignore`).

    Raises:
        UserError: background is missing or not first, a name or value occurs twice, a value is outside 0..255, or a
            region, the ignored value or a remapping uses a value that is not allowed there.
    """

    labels: tuple[tuple[int, str], ...]
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ignore: int | None = None
    remap: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a schema that cannot be converted to class indices and back."""
        for problem in chain(_label_problems(self), _region_problems(self), _ignore_and_remap_problems(self)):
            raise problem

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str = "labels") -> LabelSchema:
        """Read "labels", "regions", "ignore" and "remap" of a manifest, an MSD dataset.json or a rules file.

        An example: {"labels": {"0": "background", "1": "lesion"}, "regions": {"all": [1]}, "ignore": 255,
        "remap": {"4": 1}}. Only "labels" is required; other keys are ignored. Values may be whole numbers, or texts
        of digits. Labels are sorted by value.

        Raises:
            UserError: the schema is wrong; the error names `source`.
        """
        labels = _mapping(mapping, "labels", '{"0": "background", "1": "lesion"}', source)
        regions = _mapping(mapping, "regions", '{"whole tumour": [1, 2, 3]}', source)
        remap = _mapping(mapping, "remap", '{"4": 3}', source)
        ignore = mapping.get("ignore")

        def values(name: str, region: Any) -> tuple[int, ...]:
            listed = region if isinstance(region, list | tuple) else [region]
            return tuple(sorted({_value(value, f"region {name}", source) for value in listed}))

        pairs = [(_value(value, "labels", source), name) for value, name in labels.items()]
        members = tuple((str(name), values(name, region)) for name, region in regions.items())
        ignored = None if ignore is None else _value(ignore, "ignore", source)
        moved = tuple(sorted((_value(a, "remap", source), _value(b, "remap", source)) for a, b in remap.items()))
        try:
            return cls(tuple(sorted(pairs, key=lambda pair: pair[0])), members, ignored, moved)
        except UserError as error:
            raise error.within(source) from None

    def to_mapping(self) -> dict[str, Any]:
        """Return the mapping that `from_mapping` reads, without unused keys."""
        return {
            "labels": {str(value): name for value, name in self.labels},
            **({"regions": {name: list(values) for name, values in self.regions}} if self.regions else {}),
            **({} if self.ignore is None else {"ignore": self.ignore}),
            **({"remap": {str(old): new for old, new in self.remap}} if self.remap else {}),
        }

    @property
    def values(self) -> tuple[int, ...]:
        """Values of the classes, in the order of class indices."""
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

    def structures(self) -> dict[str, tuple[int, ...]]:
        """Name to class indices of what is scored: the regions, or every foreground class if there are no regions."""
        if self.regions:
            return {name: tuple(self.values.index(value) for value in values) for name, values in self.regions}
        return {name: (index,) for index, name in enumerate(self.foreground, start=1)}

    def structure_masks(self, indices: ArrayLike) -> dict[str, NDArray[np.bool_]]:
        """Return a mask of each of `structures`, given class indices of any shape; ignored voxels are in none."""
        import numpy as np

        return {name: np.isin(indices, members) for name, members in self.structures().items()}

    def one_hot(self, indices: ArrayLike) -> NDArray[np.bool_]:
        """Return one plane per class, (num_classes, *shape), of class indices (*shape); ignored voxels are in none."""
        import numpy as np

        indices = np.asarray(indices)
        return np.asarray(np.arange(self.num_classes).reshape(-1, *[1] * indices.ndim) == indices)

    def from_one_hot(self, planes: ArrayLike) -> NDArray[np.uint8]:
        """Invert `one_hot`: a voxel that is in no plane becomes `IGNORE`.

        Raises:
            ValueError: the number of planes is not the number of classes.
        """
        import numpy as np

        planes = np.asarray(planes, dtype=bool)
        if len(planes) != self.num_classes:
            raise ValueError(f"{len(planes)} planes for {self.num_classes} classes")
        return np.where(planes.any(axis=0), planes.argmax(axis=0), IGNORE).astype(np.uint8)

    def to_indices(self, array: ArrayLike, path: str | os.PathLike[str] | None = None) -> NDArray[np.uint8]:
        """Remap file values and map them to class indices 0..num_classes-1 (0 = background) or IGNORE.

        Returns:
            uint8, same shape.

        Raises:
            UserError: values are not in the schema, or not whole numbers; the error names them and `path`,
                the file that they are from.
        """
        import numpy as np

        raw = np.asarray(array)
        lookup = np.full(_LARGEST + 1, -1, dtype=np.int16)
        lookup[list(self.values)] = range(self.num_classes)
        if self.ignore is not None:
            lookup[self.ignore] = IGNORE
        for old, new in self.remap:
            lookup[old] = lookup[new]
        indices = np.empty_like(raw, np.uint8)
        unknown = np.empty(0, raw.dtype)  # the smallest of the values that are not in the schema
        # In chunks: several temporary arrays of a large volume would not fit in memory.
        chunks = np.nditer(
            [raw, indices],
            ["buffered", "external_loop", "zerosize_ok"],
            [["readonly"], ["writeonly"]],
            buffersize=_CHUNK,
        )
        for chunk, target in chunks:
            with np.errstate(invalid="ignore"):  # NaN becomes an arbitrary byte, but its distance to that byte is NaN
                rounded = np.clip(np.rint(chunk), 0, _LARGEST).astype(np.uint8)
                near = np.abs(chunk - rounded) <= ROUNDING if chunk.dtype.kind == "f" else chunk == rounded
            mapped = lookup[rounded]
            target[:] = mapped
            if (wrong := ~near | (mapped < 0)).any():
                unknown = np.unique(np.append(unknown, chunk[wrong]))[: _MOST_SHOWN + 1]
        if unknown.size:
            shown = ", ".join(shown_value(value) for value in unknown[:_MOST_SHOWN]) + (
                ", ..." if len(unknown) > _MOST_SHOWN else ""
            )
            known = [f"{value} {name}" for value, name in self.labels]
            known += [] if self.ignore is None else [f"{self.ignore} ignored"]
            known += [f"{old} read as {new}" for old, new in self.remap]
            raise UserError(
                f"label values {shown} are not in the schema ({', '.join(known)})",
                "correct the file, or add or remap them in the manifest or the rules file",
                path=path,
            )
        return indices

    def to_values(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Map class indices or IGNORE back to file values; a remapped value is not restored.

        Returns:
            uint8, same shape.

        Raises:
            ValueError: an index is not a class, or is IGNORE although the schema has no ignored value.
        """
        import numpy as np

        lookup = np.full(IGNORE + 1, -1, dtype=np.int16)
        lookup[: self.num_classes] = self.values
        if self.ignore is not None:
            lookup[IGNORE] = self.ignore
        values = lookup[np.asarray(indices)]
        if (values < 0).any():
            raise ValueError("class indices that the label schema does not have")
        return values.astype(np.uint8)


def shown_value(value: Any) -> str:
    """Format a label value with all its digits, so that 0.99999994 does not look like 1."""
    return str(value).removesuffix(".0")


def _label_problems(schema: LabelSchema) -> Iterator[UserError]:
    labels = schema.labels
    for value, name in labels:
        if not isinstance(name, str) or not name.strip():
            yield UserError(f"label {value} has no name", "give every value a name")
        if not 0 <= value <= _LARGEST:
            yield UserError(f"label value {value} ({name}) is outside 0..{_LARGEST}", "renumber the labels")
    yield from _duplicates(schema.values, "label value")
    yield from _duplicates(schema.names, "label name")
    if not labels or labels[0][0] != 0 or str(labels[0][1]).casefold() != "background":
        yield UserError("labels lack the background", 'add "0": "background"')
    if len(labels) > IGNORE:
        yield UserError(f"{len(labels)} labels, but at most {IGNORE} are supported", "merge some")


def _region_problems(schema: LabelSchema) -> Iterator[UserError]:
    moved = dict(schema.remap)
    yield from _duplicates([name for name, _ in schema.regions], "region")
    for name, values in schema.regions:
        if not name.strip():
            yield UserError("a region has no name", "give it one")
        if name.casefold() == "background":
            yield UserError(f"region {name} has the name of the background", "rename it")
        if not values:
            yield UserError(f"region {name} is empty", "list the values of its labels, or remove it")
        for value in values:
            if value in moved:
                yield UserError(
                    f"region {name} holds {value}, which remap turns into {moved[value]}", f"write {moved[value]}"
                )
            if value not in schema.values[1:]:
                yield UserError(
                    f"region {name} holds {value}, which is not {_classes(schema)}",
                    "add the label, or correct the region",
                )


def _ignore_and_remap_problems(schema: LabelSchema) -> Iterator[UserError]:
    names, moved, ignore = dict(schema.labels), dict(schema.remap), schema.ignore
    if ignore in names:
        yield UserError(
            f"ignore={ignore} is the label {names[ignore]}", "remove it from the labels, or ignore another value"
        )
    if ignore is not None and not 0 <= ignore <= _LARGEST:
        yield UserError(f"ignore={ignore} is outside 0..{_LARGEST}", "ignore another value")
    yield from _duplicates([old for old, _ in schema.remap], "remapped value")
    for old, new in schema.remap:
        what = f"remap {old} to {new}"
        if old in names:
            yield UserError(f"{what}: {old} is the label {names[old]}", "remove it from labels or from remap")
        if old == ignore:
            yield UserError(f"{what}: {old} is ignored", "remove it from remap, or ignore another value")
        if not 0 <= old <= _LARGEST:
            yield UserError(f"{what}: {old} is outside 0..{_LARGEST}", "renumber the labels")
        if new in moved:
            yield UserError(f"{what}: {new} is remapped itself", f"remap {old} to {moved[new]}")
        if new not in names and new != ignore:
            yield UserError(f"{what}: {new} is not {_classes(schema)}", "add the label, or correct remap")


def _classes(schema: LabelSchema) -> str:
    return f"the label of a class ({', '.join(str(value) for value in schema.values[1:]) or 'there are none'})"


def _mapping(content: Any, key: str, example: str, source: str) -> Mapping[Any, Any]:
    found = content.get(key, {}) if isinstance(content, Mapping) else content
    if not isinstance(found, Mapping):
        raise UserError(f"{key} is not a mapping", f"write it as {example}", path=source)
    return found


def _value(text: Any, where: str, source: str) -> int:
    # ASCII digits only: int() also accepts "1_0" and digits of other scripts.
    if not (str(text).isascii() and str(text).isdigit()):
        raise UserError(f'{where} holds the value "{text}", not a whole number', 'write {"1": "name"}', path=source)
    return int(text)


def _duplicates(items: Sequence[object], what: str) -> Iterator[UserError]:
    if duplicates := sorted({str(item) for item in items if items.count(item) > 1}):
        yield UserError(f"{what} {', '.join(duplicates)} occurs twice", f"make each {what} unique")
