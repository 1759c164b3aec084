"""Named masks of segments and ROIs, and their conversion to class indices by the user's rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.dicom.instance import quiet
from medaug.errors import UserError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class NamedMask:
    """One segment or ROI. Its mask is only made on request, because rules may match few of many ROIs.

    Attributes:
        name: its name in the file, on one line, for the rules to match.
        shown: the name for messages, without words that identify a patient.
        draw: makes the mask, (X, Y, Z) bool on the reference grid, and returns it with notes on what was left out or
            assumed. Raises UserError if the segment or ROI does not fit the grid, or is damaged.
    """

    name: str
    shown: str
    draw: Callable[[], tuple[Mask, list[str]]]

    @property
    def mask(self) -> Mask:
        """The mask, computed again at every access."""
        return self.draw()[0]


@dataclass(frozen=True)
class LabelObject:
    """What the header of a SEG or RTSTRUCT contains.

    Attributes:
        names: names of its segments or ROIs, in the order of the file.
        series_uids: SeriesInstanceUIDs of the images that it references.
        frame_of_reference: FrameOfReferenceUID, "" if it is missing.
        sop_instance_uids: SOPInstanceUIDs of these images. Some tools write wrong ones: use positions to place masks.
    """

    names: tuple[str, ...]
    series_uids: frozenset[str]
    frame_of_reference: str
    sop_instance_uids: frozenset[str]


def combine(
    masks: Sequence[NamedMask], structures: Mapping[str, str], schema: LabelSchema
) -> tuple[NDArray[np.uint8], list[str]]:
    """Combine the masks that match the rules into one volume of class indices.

    A rule is searched anywhere in a name, ignoring case ("gtv" matches "GTV_1"; "^gtv$" matches only GTV). A class is
    the union of its masks. Where classes overlap, the later one in `structures` wins: list a whole before its parts.

    Args:
        masks: masks on one grid; they are made one at a time.
        structures: class name to regular expression. Empty: a class gets the masks of exactly its name, ignoring case.
        schema: the classes.

    Returns:
        Class indices (X, Y, Z) uint8, and notes, one line each: names that match no rule, classes without a mask,
        empty masks, voxels in several classes, and the notes of each mask.

    Raises:
        UserError: a rule is not a regular expression or is not for a foreground class, a name matches two classes, no
            name matches any class, or a mask cannot be made.
    """
    rules = compile_structures(structures, schema)
    matched: dict[str, list[NamedMask]] = {name: [] for name in rules}
    unmatched: list[NamedMask] = []
    for named in masks:
        matches = [name for name, rule in rules.items() if rule.search(named.name)]
        if len(matches) > 1:
            raise UserError(
                f'"{named.shown}" is matched by the rules of {" and ".join(matches)}',
                'make the rules in structures stricter, such as "^gtv$"',
            )
        (matched[matches[0]] if matches else unmatched).append(named)
    if len(unmatched) == len(masks):
        raise UserError(
            f"no rule in structures matches any of its names ({_quoted(unmatched) or 'it has none'})",
            "write rules that match them, or leave the file out",
        )
    notes = [f"no rule in structures matches {_quoted(unmatched)}"] if unmatched else []
    notes += [f"no segment or ROI for {name}" for name, members in matched.items() if not members]
    indices: NDArray[np.uint8] | None = None
    for name, members in matched.items():
        index = schema.names.index(name)
        for member in members:
            mask, remarks = member.draw()
            notes += [f'"{member.shown}": {remark}' for remark in remarks]
            if not mask.any():
                notes.append(f'"{member.shown}" is empty')
            if indices is None:
                indices = np.zeros(mask.shape, np.uint8)
            for other, count in enumerate(np.bincount(indices[mask], minlength=schema.num_classes)):
                if count and other not in (0, index):
                    both = f'{count} voxels of {schema.names[other]} are in "{member.shown}" too'
                    notes.append(f"{both}, and become {name}")
            indices[mask] = index
    assert indices is not None  # at least one name matches
    return indices, notes


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn any exception inside the block into a UserError, and silence pydicom's warnings, which quote values.

    Damaged bytes can raise nearly any built-in exception in pydicom, whose text may quote the patient's data: the error
    gives only its type.

    Args:
        what: start of the message, such as "segmentation".
    """
    try:
        with quiet():
            yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({error.strerror or type(error).__name__})", "check it") from None
    except Exception as error:
        raise UserError(f"{what}: damaged or incomplete ({type(error).__name__})", "export it again") from None


def one_line(name: object, otherwise: str) -> str:
    """Return the name of a segment or ROI on one line, at most 64 characters; `otherwise` if nothing is left."""
    return "".join(c if c.isprintable() else " " for c in str(name or ""))[:64].strip() or otherwise


def compile_structures(
    structures: Mapping[str, str], schema: LabelSchema, path: str | None = None
) -> dict[str, re.Pattern[str]]:
    """Compile the rules for names by foreground class; without rules, a name must equal the class's own.

    The error messages name `path`, the file that the rules are from.

    Raises:
        UserError: a rule is not a regular expression, or is not for a foreground class of the schema.
    """
    rules = {}
    for name, rule in (structures or {name: f"^{re.escape(name)}$" for name in schema.foreground}).items():
        if name not in schema.foreground:
            raise UserError(
                f"structures names {name}, which is not a foreground class",
                f"the labels are {', '.join(schema.foreground)}",
                path=path,
            )
        try:
            rules[name] = re.compile(rule, re.IGNORECASE)
        except re.error as error:
            raise UserError(
                f'structures.{name}: "{rule}" is not a regular expression ({error})', "correct it", path=path
            ) from error
    return rules


def _quoted(masks: Sequence[NamedMask]) -> str:
    return ", ".join(f'"{mask.shown}"' for mask in masks)
