"""Named masks of segments and ROIs, and how a user's rules turn them into class indices."""

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
    """One segment or ROI. Its mask is made on request: a structure set may hold many that no rule matches.

    Attributes:
        name: its name in the file, on one line, for the rules to match.
        shown: the name as messages may show it, without words that identify a patient.
        draw: makes the mask, (X, Y, Z) bool on the reference grid, and says in notes what was left out or assumed.
            Raises UserError where the segment or ROI cannot be put on the grid, or is damaged.
    """

    name: str
    shown: str
    draw: Callable[[], tuple[Mask, list[str]]]

    @property
    def mask(self) -> Mask:
        """The mask, drawn anew at every call."""
        return self.draw()[0]


@dataclass(frozen=True)
class LabelObject:
    """What a SEG or RTSTRUCT refers to, from its header.

    Attributes:
        names: its segments or ROIs, in the order of the file.
        series_uids: SeriesInstanceUIDs of the images that it was drawn on, as far as it says.
        frame_of_reference: FrameOfReferenceUID, "" where it does not say.
        sop_instance_uids: SOPInstanceUIDs of these images. Some tools write wrong ones: use positions to place masks.
    """

    names: tuple[str, ...]
    series_uids: frozenset[str]
    frame_of_reference: str
    sop_instance_uids: frozenset[str]


def combine(
    masks: Sequence[NamedMask], structures: Mapping[str, str], schema: LabelSchema, source: str
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw the masks that the rules want and make one volume of class indices.

    A rule is found anywhere in a name, whatever the case ("gtv" finds "GTV_1"; "^gtv$" finds GTV alone). All masks of a
    class are joined. Where classes overlap, the one that stands later in `structures` wins: write whole before core.

    Args:
        masks: of one grid; drawn one at a time.
        structures: class name to regular expression. Empty: each class is the name that equals its own, in any case.
        schema: the classes.
        source: for messages.

    Returns:
        Class indices (X, Y, Z) uint8, and notes, one line each: names that no rule wants, classes without a name,
        empty masks, voxels that several classes claim, and what was noted as a mask was drawn.

    Raises:
        UserError: a rule that is no regular expression or names no foreground class, a name that two classes want,
            no name that any class wants, or a wanted mask that cannot be drawn.
    """
    rules = compile_structures(structures, schema, source)
    wanted: dict[str, list[NamedMask]] = {name: [] for name in rules}
    unwanted: list[NamedMask] = []
    for named in masks:
        matches = [name for name, rule in rules.items() if rule.search(named.name)]
        if len(matches) > 1:
            raise UserError(
                f'{source}: "{named.shown}" is matched by the rules of {" and ".join(matches)}',
                'make the rules in structures stricter, such as "^gtv$"',
            )
        (wanted[matches[0]] if matches else unwanted).append(named)
    if len(unwanted) == len(masks):
        raise UserError(
            f"{source}: no rule in structures matches any of its names ({_quoted(unwanted) or 'it has none'})",
            "write rules that find them, or leave the file out",
        )
    notes = [f"no rule in structures matches {_quoted(unwanted)}"] if unwanted else []
    notes += [f"no segment or ROI for {name}" for name, members in wanted.items() if not members]
    indices: NDArray[np.uint8] | None = None
    for name, members in wanted.items():
        index = schema.names.index(name)
        for member in members:
            try:
                mask, remarks = member.draw()
            except UserError as error:
                raise error.within(source) from None
            notes += [f'"{member.shown}": {remark}' for remark in remarks]
            if not mask.any():
                notes.append(f'"{member.shown}" is empty')
            if indices is None:
                indices = np.zeros(mask.shape, np.uint8)
            for other, count in enumerate(np.bincount(indices[mask], minlength=schema.num_classes)):
                if count and other not in (0, index):
                    notes.append(f'{count} voxels of {schema.names[other]} lie in "{member.shown}" too: now {name}')
            indices[mask] = index
    assert indices is not None  # at least one name is wanted
    return indices, notes


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn whatever goes wrong within into a UserError, and keep pydicom's warnings, which quote values, from stderr.

    Damaged bytes raise nearly every built-in exception somewhere in pydicom, and their texts quote the patient: only
    the kind of the exception is told.

    Args:
        what: how the message starts, such as "segmentation".
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
    """A segment's or ROI's name without line breaks or outer blanks, at most 64 characters, or `otherwise`."""
    return "".join(c if c.isprintable() else " " for c in str(name or ""))[:64].strip() or otherwise


def compile_structures(structures: Mapping[str, str], schema: LabelSchema, source: str) -> dict[str, re.Pattern[str]]:
    """The rules for names by foreground class; without any, each class is the name that equals its own.

    Raises:
        UserError: a rule is no regular expression, or names no foreground class of the schema.
    """
    rules = {}
    for name, rule in (structures or {name: f"^{re.escape(name)}$" for name in schema.foreground}).items():
        if name not in schema.foreground:
            raise UserError(
                f"{source}: structures names {name}, which is no foreground class",
                f"the labels hold {', '.join(schema.foreground)}",
            )
        try:
            rules[name] = re.compile(rule, re.IGNORECASE)
        except re.error as error:
            raise UserError(
                f'{source}: structures.{name}: "{rule}" is no regular expression ({error})', "mend it"
            ) from error
    return rules


def _quoted(masks: Sequence[NamedMask]) -> str:
    return ", ".join(f'"{mask.shown}"' for mask in masks)
