"""Assigns each SEG and RTSTRUCT of a DICOM tree to a study, by the image series that it references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medaug.dicom.findings import FindingLog
from medaug.dicom.headers import Series, Tree
from medaug.dicom.instance import Instance, quiet
from medaug.dicom.masks import LabelObject
from medaug.dicom.privacy import Name, identifying_terms, scrub
from medaug.dicom.rtstruct import describe_rtstruct
from medaug.dicom.seg import describe_seg
from medaug.dicom.series import is_image
from medaug.errors import UserError

DESCRIBE: dict[str, Callable[[Path], LabelObject]] = {"SEG": describe_seg, "RTSTRUCT": describe_rtstruct}
_MOST_NAMES = 4  # names of one label object that a message lists


@dataclass(frozen=True)
class Label:
    """One file with (part of) a case's label; `title` describes it for messages, without its path."""

    kind: Literal["SEG", "RTSTRUCT", "file"]
    path: Path
    title: str


@dataclass(frozen=True)
class Drawing:
    """A SEG or RTSTRUCT.

    Attributes:
        label: its file.
        series: the series that the file itself belongs to.
        header: the content of its header.
        drawn_on: the image series of the tree that it references as those it was drawn on.
    """

    label: Label
    series: Series
    header: LabelObject
    drawn_on: tuple[Series, ...]

    @property
    def title(self) -> str:
        """Kind, names and images, for messages; distinguishes it from the other labels of a study."""
        terms = identifying_terms([self.label.path])
        names = [f'"{scrub(name, terms)}"' for name in self.header.names]
        rest = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        drawn_on = f", drawn on {_titles(self.drawn_on)}" if self.drawn_on else ""
        return (
            f"{self.label.title} ({self.label.kind} of {', '.join(names[:_MOST_NAMES] + rest) or 'nothing'}{drawn_on})"
        )


def describe(series: Series, path: Path) -> LabelObject:
    """Read what one file of a SEG or RTSTRUCT series refers to.

    Raises:
        UserError: as for `describe_seg` and `describe_rtstruct`.
    """
    with quiet():
        return DESCRIBE[series.modality](path)


def link_objects(
    objects: Mapping[Instance, Series],
    tree: Tree,
    used: Mapping[str, Sequence[Series]],
    are_chosen: bool,
    names: Mapping[str, Name],
    log: FindingLog,
) -> dict[str, list[Drawing]]:
    """Find the SEG and RTSTRUCT of each study.

    An object that references an image series of the tree belongs to that series. If it references none, its frame of
    reference decides, then its study. The same holds if it references a series that no rule matches, but only if the
    user selected the label files and the study has no label that was drawn on a series that a rule matches.

    Args:
        objects: SEG and RTSTRUCT instances with their series.
        tree: what `scan_tree` found.
        used: study UID to the series that rules match.
        are_chosen: the user selected the label files.
        names: study UID to its names.
        log: receives the findings.
    """
    drawings = _describe_all(objects, tree, names, log)
    linked: dict[str, list[Drawing]] = defaultdict(list)
    unlinked: list[Drawing] = []
    for drawing in drawings:
        owner = _owner_by_reference(drawing, used) if drawing.drawn_on else _owner_by_frame(drawing, used)
        if owner is None:
            unlinked.append(drawing)
        else:
            linked[owner].append(drawing)
    labelled = set(linked)
    for drawing in unlinked:
        owner = _owner_by_frame(drawing, used) if drawing.drawn_on and are_chosen else None
        if owner is not None and owner not in labelled:
            linked[owner].append(drawing)
            what = f"{drawing.title} is used for other images: no rule matches those that it was drawn on"
            remedy = "make sure that they show the same anatomy in the same place"
            log.add(names[owner].case, "warning", "dicom-label-frame", what, remedy, [drawing.label.path])
        else:
            _report_unlinked(drawing, labelled, names, log)
    for study, members in linked.items():
        frames = {series.frame_of_reference for series in used[study]}
        for drawing in members:
            frame = drawing.header.frame_of_reference
            if frame and frame not in frames and all(frames):
                what = f"{drawing.title} has another frame of reference than the images"
                remedy = "make sure that it was drawn on them, or on a scan that is registered to them"
                log.add(names[study].case, "warning", "dicom-label-frame", what, remedy, [drawing.label.path])
    return linked


def _describe_all(
    objects: Mapping[Instance, Series], tree: Tree, names: Mapping[str, Name], log: FindingLog
) -> list[Drawing]:
    by_uid: dict[str, list[Series]] = defaultdict(list)  # UIDs of series and of instances
    for image in filter(is_image, tree.series):
        for uid in (image.uid, *(instance.sop_instance_uid for instance in image.instances)):
            by_uid[uid].append(image)
    drawings = []
    for instance, series in objects.items():
        try:
            header = describe(series, instance.path)
        except UserError as error:
            case, what = names[series.study_uid].case, f"{series.title}: {error.what}"
            log.add(case, "error", "dicom-label-unreadable", what, error.remedy, [instance.path])
            continue
        drawn_on = _look_up(by_uid, header.series_uids) or _look_up(by_uid, header.sop_instance_uids)
        label = Label("SEG" if series.modality == "SEG" else "RTSTRUCT", instance.path, series.title)
        drawings.append(Drawing(label, series, header, drawn_on))
    return drawings


def _look_up(by_uid: Mapping[str, Sequence[Series]], uids: Iterable[str]) -> tuple[Series, ...]:
    found = {(one.study_uid, one.uid): one for uid in sorted(uids) for one in by_uid.get(uid, ())}
    return tuple(found.values())


def _owner_by_reference(drawing: Drawing, used: Mapping[str, Sequence[Series]]) -> str | None:
    matched = {(study, one.uid) for study, members in used.items() for one in members}
    return _select({one.study_uid for one in drawing.drawn_on if (one.study_uid, one.uid) in matched}, drawing)


def _owner_by_frame(drawing: Drawing, used: Mapping[str, Sequence[Series]]) -> str | None:
    frame, own = drawing.header.frame_of_reference, drawing.series.study_uid
    studies = {study for study, members in used.items() if frame and frame in {s.frame_of_reference for s in members}}
    return _select(studies, drawing) or (own if own in used else None)


def _select(studies: set[str], drawing: Drawing) -> str | None:
    """Return the label's own study if it is among these, or else the only one; None if there are several."""
    if drawing.series.study_uid in studies:
        return drawing.series.study_uid
    return next(iter(studies)) if len(studies) == 1 else None


def _report_unlinked(drawing: Drawing, labelled: set[str], names: Mapping[str, Name], log: FindingLog) -> None:
    study = drawing.series.study_uid
    if drawing.drawn_on:
        what = f"{drawing.title} is left out: no rule matches the series that it was drawn on"
        remedy = (
            "nothing to do if that is intended; otherwise add a rule for that series, or select the file with `label`"
        )
    else:
        what = f"{drawing.title} belongs to no series that a rule matches"
        remedy = "nothing to do if that is intended; otherwise widen the rules to the series that it was drawn on"
    severity: Literal["note", "warning"] = "note" if drawing.drawn_on and study in labelled else "warning"
    log.add(names[study].case, severity, "dicom-label-unlinked", what, remedy, [drawing.label.path])


def _titles(series: Sequence[Series]) -> str:
    return " and ".join(dict.fromkeys(f"{one.modality} {one.title}".strip() for one in series))
