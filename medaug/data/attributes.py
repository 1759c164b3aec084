"""Attributes of a scan (site, contrast, grade, voxel size), encoded as a vector for the network.

Each attribute becomes a few numbers and a "known" flag. A text is one-hot encoded over the values in the training
split; a number is standardised with the mean and standard deviation of the training split. A value that is missing, or
that training never saw, is encoded as zeros.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import SPACING, Case
from medaug.data.grid import oriented_spacing
from medaug.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LABEL_SOURCE, HUMAN, TEACHER = "label_source", "human", "teacher"
"""Attribute of models that were trained on pseudo-labels, too: "human", or "teacher" for a scan without a label."""

Value = str | float | list[float]
"""A text, a number, or the three voxel sizes in mm along R, A, S."""

Scan = tuple[Case, NDArray[np.float64]]
"""A case and its affine (4, 4), mm."""


@dataclass(frozen=True)
class Attribute:
    """One attribute and its values in the training split.

    Attributes:
        name: its name in the manifest, or "spacing".
        categories: the sorted values of a text attribute; empty for numbers.
        mean, std: mean and standard deviation of each number (std is 1 if it is constant); empty for a text.
        low, high: minimum and maximum of each number; empty for a text.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers encode the attribute, flag included."""
        return len(self.categories) + len(self.mean) + 1

    @property
    def seen(self) -> str:
        """The values that training saw, for messages."""
        ranges = [f"{low:g} to {high:g}" for low, high in zip(self.low, self.high, strict=True)]
        return ", ".join(self.categories or ranges)

    def encode(self, value: Value | None) -> list[float]:
        """Encode a value (None: unknown); the last number is the "known" flag."""
        unseen = value not in self.categories if self.categories else isinstance(value, str)
        if value is None or unseen:
            return [0.0] * self.size
        if self.categories:
            return [*(float(value == category) for category in self.categories), 1.0]
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return [*((numbers - self.mean) / self.std).tolist(), 1.0]


@dataclass(frozen=True)
class AttributeEncoder:
    """The attributes that a model is conditioned on, fitted on the training split by `fit_attributes`."""

    attributes: tuple[Attribute, ...] = ()

    @property
    def size(self) -> int:
        """A, the length of an encoded vector."""
        return sum(attribute.size for attribute in self.attributes)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(a).items()} for a in self.attributes]

    @classmethod
    def from_dict(cls, values: Sequence[Mapping[str, Any]]) -> AttributeEncoder:
        """The inverse of `to_dict`."""
        numbers = ("categories", "mean", "std", "low", "high")
        return cls(tuple(Attribute(entry["name"], *(tuple(entry[key]) for key in numbers)) for entry in values))

    def of(self, case: Case, affine: NDArray[np.float64]) -> dict[str, Value]:
        """The values of the encoder's attributes that are known for a scan."""
        found = {attribute.name: _value(attribute.name, case, affine) for attribute in self.attributes}
        return {name: value for name, value in found.items() if value is not None}

    def encode(self, values: Mapping[str, Value]) -> Tensor:
        """Encode values as a vector (A,), float32; attributes that are missing or new to the model are zeros."""
        import torch

        numbers = [number for a in self.attributes for number in a.encode(values.get(a.name))]
        return torch.tensor(numbers, dtype=torch.float32)

    def hide(self, vector: Tensor, which: Tensor) -> Tensor:
        """Set attributes to unknown in vectors (B, A), wherever `which` (B, n) bool is true for one of n attributes."""
        import torch

        sizes = torch.tensor([a.size for a in self.attributes], dtype=torch.long, device=which.device)
        return vector.masked_fill(which.repeat_interleave(sizes, dim=1), 0.0)

    def requested(self, words: Sequence[str]) -> dict[str, Value]:
        """Parse the attributes that a user requests, each written as `name:value`.

        Raises:
            UserError: the model does not have the attribute, it is given twice, or training never saw the value.
        """
        known = {attribute.name: attribute for attribute in self.attributes if attribute.name != SPACING}
        values: dict[str, Value] = {}
        for word in words:
            name, colon, text = word.partition(":")
            if not colon:
                raise UserError(f"attributes: {word} has no value", f"write {name}:VALUE")
            if name == SPACING:
                raise UserError(
                    f"attributes: {SPACING} is fixed by the host's grid and cannot be chosen", "leave it out"
                )
            if name not in known:
                choice = f"choose from {', '.join(known)}" if known else "train with data.attributes=[NAME,...]"
                raise UserError(f"attributes: the model has no attribute {name}", choice)
            if name in values:
                raise UserError(f"attributes: {name} is given twice", "give one value")
            attribute = known[name]
            value: Value
            if attribute.categories:
                value, seen = text, text in attribute.categories
            else:
                value = _number(text)
                seen = attribute.low[0] <= value <= attribute.high[0]
            if not seen:
                raise UserError(f"attributes: {word}: training saw no such {name}", f"choose from {attribute.seen}")
            values[name] = value
        return values

    def warn_of_unknown(self, scans: Iterable[Scan]) -> None:
        """Warn about attributes that count as unknown, and in which cases; one line per value."""
        cases: dict[tuple[str, str], list[str]] = {}
        for case, affine in scans:
            values = self.of(case, affine)
            for attribute in self.attributes:
                value = values.get(attribute.name)
                if not attribute.encode(value)[-1]:
                    why = "it has none" if value is None else f"{value} was never seen in training"
                    cases.setdefault((attribute.name, why), []).append(case.name)
        for (name, why), names in cases.items():
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            log.warning("attribute %s counts as unknown in case %s%s: %s", name, names[0], more, why)


NO_ATTRIBUTES = AttributeEncoder()


def with_label_source(encoder: AttributeEncoder) -> AttributeEncoder:
    """The encoder with one more attribute, which says whose label a scan has."""
    return AttributeEncoder((*encoder.attributes, Attribute(LABEL_SOURCE, (HUMAN, TEACHER))))


def check_attributes(names: Sequence[str], cases: Iterable[Case]) -> None:
    """Check that a cohort has these attributes.

    Raises:
        UserError: an attribute is missing (the message lists those that exist) or is given twice.
    """
    there = sorted({SPACING, *(name for case in cases for name in case.attributes)})
    for name in names:
        if name not in there:
            raise UserError(f"data.attributes: no training case has {name}", f"there are {', '.join(there)}")
        if names.count(name) > 1:
            raise UserError(f"data.attributes: {name} is given twice", "give it once")


def fit_attributes(names: Sequence[str], scans: Sequence[Scan]) -> AttributeEncoder:
    """Fit an encoder of these attributes to the training scans.

    Raises:
        UserError: as for `check_attributes`, or an attribute has the same value in all scans.
    """
    check_attributes(names, [case for case, _ in scans])
    return AttributeEncoder(tuple(_fit(name, scans) for name in names))


def _fit(name: str, scans: Sequence[Scan]) -> Attribute:
    values = [value for case, affine in scans if (value := _value(name, case, affine)) is not None]
    texts = tuple(sorted({value for value in values if isinstance(value, str)}))
    if texts:
        attribute = Attribute(name, texts)
    else:
        numbers = np.array(values, dtype=np.float64).reshape(len(values), -1)
        low, high = numbers.min(0), numbers.max(0)
        std = np.where(low == high, 1.0, numbers.std(0))
        attribute = Attribute(name, (), *(tuple(each.tolist()) for each in (numbers.mean(0), std, low, high)))
    if len(texts) == 1 or (not texts and attribute.low == attribute.high):
        what = values[0] if isinstance(values[0], str) else " x ".join(f"{number:g}" for number in attribute.low)
        raise UserError(f"data.attributes: {name} is {what} in all training scans, so it has no effect", "leave it out")
    return attribute


def _value(name: str, case: Case, affine: NDArray[np.float64]) -> Value | None:
    if name == LABEL_SOURCE:
        return HUMAN if case.label is not None else TEACHER
    # Rounded to a thousandth of a millimetre: stored sizes differ by rounding between scans of one protocol.
    return [round(size, 3) for size in oriented_spacing(affine)] if name == SPACING else case.attributes.get(name)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
