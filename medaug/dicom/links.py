"""Which study a SEG or RTSTRUCT of a DICOM tree belongs to, by the image series that it names."""

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
_MOST_NAMES = 4  # of one label object in a message


@dataclass(frozen=True)
class Label:
    """One file with (part of) a case's label; `said` names it without its path."""

    kind: Literal["SEG", "RTSTRUCT", "file"]
    path: Path
    said: str


@dataclass(frozen=True)
class Drawing:
    """A SEG or RTSTRUCT.

    Attributes:
        label: its file.
        series: the series that the file itself is part of.
        holds: what its header says.
        named: the image series of the tree that it was drawn on, as far as it names any.
    """

    label: Label
    series: Series
    holds: LabelObject
    named: tuple[Series, ...]

    @property
    def title(self) -> str:
        """Kind, names and images in words that a message may use, to tell it from the other labels of a study."""
        terms = identifying_terms([self.label.path])
        names = [f'"{scrub(name, terms)}"' for name in self.holds.names]
        rest = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        drawn_on = f", drawn on {_titles(self.named)}" if self.named else ""
        return (
            f"{self.label.said} ({self.label.kind} of {', '.join(names[:_MOST_NAMES] + rest) or 'nothing'}{drawn_on})"
        )


def describe(series: Series, path: Path) -> LabelObject:
    """Read what one file of a SEG or RTSTRUCT series refers to.

    Raises:
        UserError: as `describe_seg` and `describe_rtstruct`.
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

    One that names an image series of the tree belongs to that series. For one that names none, the frame of reference
    decides, then the study. So they do for one that names a series without a rule, but only if the user chose the
    files and the study has no label that was drawn on a series with a rule.

    Args:
        objects: SEG and RTSTRUCT instances with their series.
        tree: of `scan_tree`.
        used: study UID to the series that rules match.
        are_chosen: the user named the label files.
        names: study UID to its names.
        log: receives the findings.
    """
    drawings = _describe_all(objects, tree, names, log)
    linked: dict[str, list[Drawing]] = defaultdict(list)
    unlinked: list[Drawing] = []
    for drawing in drawings:
        owner = _owner_by_name(drawing, used) if drawing.named else _owner_by_frame(drawing, used)
        if owner is None:
            unlinked.append(drawing)
        else:
            linked[owner].append(drawing)
    labelled = set(linked)
    for drawing in unlinked:
        owner = _owner_by_frame(drawing, used) if drawing.named and are_chosen else None
        if owner is not None and owner not in labelled:
            linked[owner].append(drawing)
            what = f"{drawing.title} is put on other images of the study: no rule matches those that it was drawn on"
            remedy = "make sure that they show the same anatomy in the same place"
            log.add(names[owner].case, "warning", "dicom-label-frame", what, remedy, [drawing.label.path])
        else:
            _report_unlinked(drawing, labelled, names, log)
    for study, members in linked.items():
        frames = {series.frame_of_reference for series in used[study]}
        for drawing in members:
            frame = drawing.holds.frame_of_reference
            if frame and frame not in frames and all(frames):
                what = f"{drawing.title} lies in another frame of reference than the images"
                remedy = "make sure that it was drawn on them, or on a scan that is registered to them"
                log.add(names[study].case, "warning", "dicom-label-frame", what, remedy, [drawing.label.path])
    return linked


def _describe_all(
    objects: Mapping[Instance, Series], tree: Tree, names: Mapping[str, Name], log: FindingLog
) -> list[Drawing]:
    by_uid: dict[str, list[Series]] = defaultdict(list)  # of series and of their instances
    for image in filter(is_image, tree.series):
        for uid in (image.uid, *(instance.sop_instance_uid for instance in image.instances)):
            by_uid[uid].append(image)
    drawings = []
    for instance, series in objects.items():
        try:
            holds = describe(series, instance.path)
        except UserError as error:
            case, what = names[series.study_uid].case, f"{series.title}: {error.what}"
            log.add(case, "error", "dicom-label-unreadable", what, error.remedy, [instance.path])
            continue
        named = _found(by_uid, holds.series_uids) or _found(by_uid, holds.sop_instance_uids)
        label = Label("SEG" if series.modality == "SEG" else "RTSTRUCT", instance.path, series.title)
        drawings.append(Drawing(label, series, holds, named))
    return drawings


def _found(by_uid: Mapping[str, Sequence[Series]], uids: Iterable[str]) -> tuple[Series, ...]:
    found = {(one.study_uid, one.uid): one for uid in sorted(uids) for one in by_uid.get(uid, ())}
    return tuple(found.values())


def _owner_by_name(drawing: Drawing, used: Mapping[str, Sequence[Series]]) -> str | None:
    matched = {(study, one.uid) for study, members in used.items() for one in members}
    return _one_of({one.study_uid for one in drawing.named if (one.study_uid, one.uid) in matched}, drawing)


def _owner_by_frame(drawing: Drawing, used: Mapping[str, Sequence[Series]]) -> str | None:
    frame, own = drawing.holds.frame_of_reference, drawing.series.study_uid
    studies = {study for study, members in used.items() if frame and frame in {s.frame_of_reference for s in members}}
    return _one_of(studies, drawing) or (own if own in used else None)


def _one_of(studies: set[str], drawing: Drawing) -> str | None:
    """The label's own study if it is among these, else the only one."""
    if drawing.series.study_uid in studies:
        return drawing.series.study_uid
    return next(iter(studies)) if len(studies) == 1 else None


def _report_unlinked(drawing: Drawing, labelled: set[str], names: Mapping[str, Name], log: FindingLog) -> None:
    study = drawing.series.study_uid
    if drawing.named:
        what = f"{drawing.title} is left out: no rule matches the series that it was drawn on"
        remedy = "nothing, if that is meant; else write a rule for that series, or choose the file by the glob `label`"
    else:
        what = f"{drawing.title} belongs to no series that a rule matches"
        remedy = "nothing, if that is meant; else widen the rules to the series that it was drawn on"
    severity: Literal["note", "warning"] = "note" if drawing.named and study in labelled else "warning"
    log.add(names[study].case, severity, "dicom-label-unlinked", what, remedy, [drawing.label.path])


def _titles(series: Sequence[Series]) -> str:
    return " and ".join(dict.fromkeys(f"{one.modality} {one.title}".strip() for one in series))
