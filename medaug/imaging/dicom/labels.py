"""Which SEG, RTSTRUCT or label file of a DICOM tree belongs to which study."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging.dicom.book import COHORT, Book
from medaug.imaging.dicom.headers import Series, Tree, is_passed_over
from medaug.imaging.dicom.instance import Instance, quiet
from medaug.imaging.dicom.masks import LabelObject, compile_structures
from medaug.imaging.dicom.privacy import Name, identifying_terms, scrub, scrub_quoted
from medaug.imaging.dicom.rtstruct import describe_rtstruct
from medaug.imaging.dicom.seg import describe_seg
from medaug.imaging.dicom.series import is_image
from medaug.imaging.preflight.findings import Finding
from medaug.imaging.rules import Rules

MOST_LISTED = 40
_DESCRIBE: dict[str, Callable[[Path], LabelObject]] = {"SEG": describe_seg, "RTSTRUCT": describe_rtstruct}


@dataclass(frozen=True)
class Label:
    """One file with (part of) a case's label; `said` names it without its path."""

    kind: Literal["SEG", "RTSTRUCT", "file"]
    path: Path
    said: str


def find_labels(
    tree: Tree,
    rules: Rules,
    schema: LabelSchema,
    names: Mapping[str, Name],
    root: Path,
    matched: Mapping[str, Mapping[str, Sequence[Series]]],
    book: Book,
) -> dict[str, list[Label]]:
    """Find the labels of each study that is to become a case.

    Args:
        tree: of `scan_tree`.
        rules: the glob `label` chooses among all SEG and RTSTRUCT, and adds other files; `structures` names classes.
        schema: of the labels.
        names: study UID to its names.
        root: the folder that the glob starts from.
        matched: study UID to modality to series, of the studies that are to become cases.
        book: gets what is wrong.

    Raises:
        UserError: the glob or a pattern is none.
    """
    globbed = None if rules.label is None else set(_glob(rules.label, root, rules.source))
    if globbed is not None and not globbed:
        remedy = "mend the glob, or take it and the labels out of the rules if there are none"
        book.add(COHORT, "error", "dicom-label-glob", "no file matches the glob `label` of the rules", remedy, ())
    objects = {one: series for series in tree.series if series.modality in _DESCRIBE for one in series.instances}
    wanted = {one: series for one, series in objects.items() if globbed is None or globbed.intersection(one.paths)}
    images = {study: [series for found in by.values() for series in found] for study, by in matched.items()}
    labels: dict[str, list[Label]] = defaultdict(list)
    drawn = _link_objects(wanted, images, names, book)
    structures = compile_structures(rules.structures, schema, rules.source)
    for study, found in drawn.items():
        labels[study] += found
        _judge_rivals(names[study].case, structures, found, book)
    folders: dict[str, set[Path]] = defaultdict(set)  # of all studies: a label may belong to one that is left out
    for series in filter(is_image, tree.series):
        folders[series.study_uid] |= {path.parent for path in series.paths}
    for path in sorted((globbed or set()) - {path for one in objects for path in one.paths}):
        studies = _nearest(path, root, folders)
        if len(studies) != 1:
            what = f"a label file lies as near to {len(studies)} studies, so its own cannot be told"
            case = names[studies[0]].case if studies else COHORT
            book.add(case, "error", "dicom-label-ambiguous", what, "put it into the folder of its study", [path])
        elif studies[0] in images:
            labels[studies[0]].append(Label("file", path, "the label file"))
        else:
            what, remedy = "the label file belongs to a study that is left out", "nothing, if that is meant"
            book.add(names[studies[0]].case, "warning", "dicom-label-unlinked", what, remedy, [path])
    for study, several in labels.items():
        if len(several) > 1 and any(label.kind == "file" for label in several):
            what = f"{len(several)} labels, {' and '.join(label.said for label in several)}"
            remedy = "choose one by the glob `label` in the rules"
            book.add(names[study].case, "error", "dicom-two-labels", what, remedy, [label.path for label in several])
    return labels


def _link_objects(
    objects: Mapping[Instance, Series],
    images: Mapping[str, Sequence[Series]],
    names: Mapping[str, Name],
    book: Book,
) -> dict[str, dict[Label, LabelObject]]:
    """The SEG and RTSTRUCT of each study, with what they hold."""
    studies_of: dict[str, set[str]] = defaultdict(set)  # by UIDs of series, instances and frames of reference alike
    for study, members in images.items():
        for member in members:
            for uid in (member.uid, member.frame_of_reference, *(i.sop_instance_uid for i in member.instances)):
                studies_of[uid].add(study)
    linked: dict[str, dict[Label, LabelObject]] = defaultdict(dict)
    for instance, series in objects.items():
        path, own = instance.path, series.study_uid
        label = Label("SEG" if series.modality == "SEG" else "RTSTRUCT", path, series.title)
        try:
            described = _described(series, path)
        except UserError as error:
            finding = Finding.from_error(names[own].case, "dicom-label-unreadable", error)
            what = scrub_quoted(finding.what, identifying_terms([path]))
            book.add(finding.case, "error", finding.code, f"{label.said}: {what}", finding.remedy, [path])
            continue
        owner = _owner(series, described, studies_of) or (own if own in images else None)
        if owner is None:
            what = f"{label.said} ({label.kind}) belongs to no series that is used"
            remedy = "nothing, if that is meant; else widen the rules to the series that it was drawn on"
            book.add(names[own].case, "warning", "dicom-label-unlinked", what, remedy, [path])
            continue
        frames = {s.frame_of_reference for s in images[owner]}
        if described.frame_of_reference and described.frame_of_reference not in frames and all(frames):
            what = f"{label.said} ({label.kind}) lies in another frame of reference than the images"
            remedy = "make sure that it was drawn on them, or on a scan that is registered to them"
            book.add(names[owner].case, "warning", "dicom-label-frame", what, remedy, [path])
        linked[owner][label] = described
    return linked


def _glob(pattern: str, root: Path, source: str) -> list[Path]:
    """The files that match, but for those that `scan_tree` passes over, such as the ._X beside X of macOS."""
    try:
        found = [path for path in root.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:
        what = f"label: {pattern} is no glob below root ({error})"
        raise UserError(f"{source}: {what}; write it relative to root") from None
    return [p for p in found if not any(is_passed_over(part) for part in p.relative_to(root).parts)]


def _judge_rivals(
    case: str, structures: Mapping[str, re.Pattern[str]], drawn: Mapping[Label, LabelObject], book: Book
) -> None:
    """Find the classes that several SEG and RTSTRUCT draw: nothing says which of them is meant."""
    for name, rule in structures.items():
        rivals = [label for label, described in drawn.items() if any(map(rule.search, described.names))]
        if len(rivals) > 1:
            what = f"{name} is drawn by {' and '.join(label.said for label in rivals)}"
            remedy = "choose one by the glob `label` in the rules, or tell their segments apart by `structures`"
            book.add(case, "error", "dicom-two-labels", what, remedy, [label.path for label in rivals])


def _owner(series: Series, label: LabelObject, studies_of: Mapping[str, set[str]]) -> str | None:
    """The study that a label object points at: by series, else by instance, else by frame of reference."""
    for uids in (label.series_uids, label.sop_instance_uids, [label.frame_of_reference]):
        studies = {study for uid in uids if uid for study in studies_of.get(uid, ())}
        if series.study_uid in studies:
            return series.study_uid
        if len(studies) == 1:
            return studies.pop()
    return None


def _nearest(path: Path, root: Path, folders: Mapping[str, set[Path]]) -> list[str]:
    """The studies with files in the folder of a label, else in the nearest folder above it that holds any."""
    if same := [study for study, below in folders.items() if path.parent in below]:
        return same
    for parent in path.parents:
        if near := [s for s, below in folders.items() if any(folder.is_relative_to(parent) for folder in below)]:
            return near
        if parent == root:
            break
    return []


def list_structures(tree: Tree) -> str:
    """The names of the segments and regions of interest in a tree, most frequent first, without patients' names."""
    counts: Counter[str] = Counter()
    for series in tree.series:
        for instance in series.instances if series.modality in _DESCRIBE else ():
            try:
                described = _described(series, instance.path)
            except UserError:
                continue
            counts.update({scrub(name, identifying_terms([instance.path])) for name in described.names})
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_LISTED]
    return ", ".join(f'"{name}" ({count})' for name, count in frequent)


def _described(series: Series, path: Path) -> LabelObject:
    with quiet():
        return _DESCRIBE[series.modality](path)
