"""Which series of a DICOM tree is which modality of which case, and which object is its label.

Nothing here says a name, a number or a path of the user's: a finding names the case by its pseudonym and the series
by its number, and the files it means stand in `Plan.files`, for the private file.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydicom.datadict import tag_for_keyword

from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging.dicom.headers import Series, Tree
from medaug.imaging.dicom.instance import quiet
from medaug.imaging.dicom.masks import LabelObject, compile_structures
from medaug.imaging.dicom.privacy import Name, identifying_terms, scrub, scrub_quoted
from medaug.imaging.dicom.rtstruct import describe_rtstruct
from medaug.imaging.dicom.seg import describe_seg
from medaug.imaging.dicom.series import series_header, series_problems
from medaug.imaging.preflight.findings import Finding, Severity
from medaug.imaging.rules import Rules
from medaug.imaging.volume import times

COHORT = "cohort"
_MOST_LISTED = 40
_DESCRIBE: dict[str, Callable[[Path], LabelObject]] = {"SEG": describe_seg, "RTSTRUCT": describe_rtstruct}

Pattern = Mapping[str, re.Pattern[str]]


@dataclass(frozen=True)
class Label:
    """One file with (part of) a case's label; `said` names it without its path."""

    kind: Literal["SEG", "RTSTRUCT", "file"]
    path: Path
    said: str


@dataclass(frozen=True)
class PlannedCase:
    """A case to be converted: one series per modality, in the rules' order, and the files of its label."""

    name: Name
    study: str
    series: tuple[Series, ...]
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a tree becomes.

    Attributes:
        modalities: in the rules' order.
        schema: of the labels.
        structures: class to the pattern of the names of its segments.
        cases: the complete ones.
        findings: everything that is wrong so far.
        files: the files that a finding means.
        on_gap: "refuse" or "resample", for `read_series`.
        on_grid: "refuse" or "resample": modalities on another grid than the first.
    """

    modalities: tuple[str, ...]
    schema: LabelSchema
    structures: Mapping[str, str]
    cases: tuple[PlannedCase, ...]
    findings: tuple[Finding, ...]
    files: Mapping[Finding, tuple[Path, ...]]
    on_gap: str = "refuse"
    on_grid: str = "refuse"


@dataclass
class _Book:
    """The findings, and the files that each means."""

    files: dict[Finding, tuple[Path, ...]] = field(default_factory=dict)

    def add(self, case: str, severity: Severity, code: str, what: str, remedy: str, files: Iterable[Path]) -> None:
        finding = Finding(case, severity, code, what, remedy)
        self.files[finding] = (*self.files.get(finding, ()), *files)


def plan_cohort(
    tree: Tree,
    rules: Rules,
    schema: LabelSchema,
    names: Mapping[str, Name],
    root: Path,
    on_gap: str = "refuse",
    on_grid: str = "refuse",
) -> Plan:
    """Decide, without reading a voxel, what becomes of every series: one case per study that has all modalities.

    Args:
        tree: of `scan_tree`.
        rules: modalities, the labels' glob (of NIfTI, SEG or RTSTRUCT files; None: every SEG and RTSTRUCT), structures.
        schema: of the labels.
        names: study UID to its names (`name_studies`).
        root: the folder that the glob starts from.
        on_gap: "resample": a missing slice is no error.
        on_grid: handed on.

    Raises:
        UserError: the rules name no modality (the line lists what there is), a keyword that is none, or a pattern that
            is no regular expression.
    """
    patterns = _compile(tree, rules)
    book = _Book()
    for reason, count in Counter(reason for _, reason in tree.unreadable).items():
        files = [path for path, its_reason in tree.unreadable if its_reason == reason]
        what = f"{count} file(s) cannot be read ({reason})"
        book.add(COHORT, "error", "dicom-unreadable", what, "mend or remove them; the private file lists them", files)
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in tree.series:
        studies[series.study_uid].append(series)
    matched: dict[str, dict[str, list[Series]]] = {}
    for study in sorted(studies, key=lambda uid: names[uid].case):
        images = [series for series in studies[study] if _is_image(series)]
        if images:
            found = {name: [s for s in images if matches(s, pattern)] for name, pattern in patterns.items()}
            if _judge_study(names[study].case, images, found, on_gap, book):
                matched[study] = found
    labels = _find_labels(tree, rules, schema, names, root, matched, book)
    wrong = {finding.case for finding in book.files if finding.severity == "error"}
    cases = [
        PlannedCase(names[study], study, tuple(members[0] for members in found.values()), tuple(labels[study]))
        for study, found in matched.items()
        if names[study].case not in wrong
    ]
    if schema.foreground:
        for case in cases:
            if not case.labels:
                what = "the study has no label"
                remedy = "add one, or mean it to be an unlabelled scan"
                book.add(case.name.case, "warning", "dicom-label-missing", what, remedy, ())
    return Plan(
        modalities=tuple(patterns),
        schema=schema,
        structures=rules.structures,
        cases=tuple(cases),
        findings=tuple(book.files),
        files=book.files,
        on_gap=on_gap,
        on_grid=on_grid,
    )


def matches(series: Series, pattern: Pattern) -> bool:
    """Whether every pattern is found in the series' attribute of its name, whatever the case of the letters."""
    return all(rule.search(series.attributes.get(keyword, "")) for keyword, rule in pattern.items())


def said(series: Series) -> str:
    """The series in words that a finding may use."""
    return "series without a number" if series.number is None else f"series {series.number}"


def _described(series: Series, path: Path) -> LabelObject:
    with quiet():
        return _DESCRIBE[series.modality](path)


def _is_image(series: Series) -> bool:
    return series.modality not in _DESCRIBE and all(p.code != "not-an-image" for p in series_problems(series))


def without_paths(text: str, files: Iterable[Path]) -> str:
    """A text without the paths of files, which may name a patient."""
    for path in files:
        text = text.replace(str(path), "a file")
    return text


def list_series(tree: Tree) -> str:
    """The distinct kinds of image series in a tree, a line each, most frequent first, without the patients' names."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for series in tree.series:
        if _is_image(series):
            terms = identifying_terms([series.instances[0].path])
            description = scrub(series.attributes.get("SeriesDescription", ""), terms)
            try:
                shape = times(series_header(series).shape)
            except UserError:
                shape = f"{len(series.instances)} files"
            kinds[description, series.modality, shape] += 1
    lines = [f'  {count} x {kind[1]} "{kind[0]}" ({kind[2]})' for kind, count in kinds.most_common(_MOST_LISTED)]
    return "\n".join(lines + ([f"  and {len(kinds) - _MOST_LISTED} more kinds"] if len(kinds) > _MOST_LISTED else []))


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
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LISTED]
    return ", ".join(f'"{name}" ({count})' for name, count in frequent)


def _compile(tree: Tree, rules: Rules) -> dict[str, Pattern]:
    if not rules.modalities:
        raise UserError(
            f"{rules.source}: no modalities, so nothing says which series is which; name them by patterns that are "
            'found in the series\' attributes, such as\n  modalities:\n    T1: {SeriesDescription: "^t1.*post"}\n'
            "    FLAIR: {SeriesDescription: flair, ImageType: original}\nThe tree holds\n" + list_series(tree)
        )
    known = {keyword for series in tree.series for keyword in series.attributes}
    patterns: dict[str, Pattern] = {}
    for modality, rule in rules.modalities.items():
        compiled = {}
        for keyword, text in ({"SeriesDescription": rule} if isinstance(rule, str) else rule).items():
            if known and keyword not in known and tag_for_keyword(keyword) is None:
                close = difflib.get_close_matches(keyword, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"those of this tree are {', '.join(sorted(known))}"
                raise UserError(f"{rules.source}: modality {modality}: {keyword} is no DICOM keyword; {hint}")
            try:
                compiled[keyword] = re.compile(text, re.IGNORECASE)
            except re.error as error:
                raise UserError(
                    f'{rules.source}: modality {modality}: "{text}" is no regular expression ({error}); mend it'
                ) from error
        patterns[modality] = compiled
    return patterns


def _judge_study(
    case: str, images: Sequence[Series], found: Mapping[str, Sequence[Series]], on_gap: str, book: _Book
) -> bool:
    """Find what is wrong with a study's images; returns whether it is to become a case at all."""
    used = {series.uid for members in found.values() for series in members}
    if unused := [series for series in images if series.uid not in used]:
        listed = ", ".join(sorted({said(series) for series in unused}))
        if not used:
            what = f"no series matches a rule, so the study is left out ({listed})"
            remedy = "widen the rules, or mean it to be left out"
            book.add(case, "warning", "dicom-study-not-used", what, remedy, _files(unused))
            return False
        what = f"{listed}: no rule matches"
        book.add(case, "note", "dicom-not-used", what, "nothing, if that is meant", _files(unused))
    if len(patients := {series.patient_id for series in images}) > 1:
        what = f"one study has {len(patients)} PatientIDs"
        book.add(case, "error", "dicom-two-patients", what, "correct the headers, or leave it out", _files(images))
    if "" in patients:
        what = "the study has no PatientID and counts as a subject of its own"
        remedy = "give the subjects with subjects=FILE.csv if a person has several studies"
        book.add(case, "warning", "dicom-no-patient-id", what, remedy, _files(images)[:1])
    for modality, members in found.items():
        if not members:
            what, remedy = f"no series matches {modality}", f"widen the rule for {modality}, or leave the study out"
            book.add(case, "error", "dicom-missing-modality", what, remedy, ())
        elif len(members) > 1:
            what = f"{modality} is matched by {' and '.join(said(series) for series in members)}"
            book.add(case, "error", "dicom-two-series", what, _narrower(modality, members), _files(members))
    for series in images:
        names = [name for name, members in found.items() if any(member.uid == series.uid for member in members)]
        if len(names) > 1:
            what = f"{said(series)} is matched by the rules of {' and '.join(names)}"
            book.add(case, "error", "dicom-two-rules", what, "narrow one of the rules", _files([series]))
        for problem in series_problems(series) if names else ():
            mended = on_gap == "resample" and problem.code == "gap"
            what = f"{said(series)}: {problem.what}"
            severity: Severity = "note" if mended else "error"
            remedy = "nothing: it is resampled over the gap" if mended else problem.remedy
            book.add(case, severity, f"dicom-{problem.code}", what, remedy, _files([series]))
    return True


def _narrower(modality: str, members: Sequence[Series]) -> str:
    """Say by which attributes series can be told apart; not their values, which may name somebody."""
    keywords = {keyword for series in members for keyword in series.attributes}
    telling = sorted(k for k in keywords if len({series.attributes.get(k, "") for series in members}) > 1)
    by = f"by {', '.join(telling[:6])}, in which they differ" if telling else "(no attribute tells them apart)"
    return f"narrow the rule for {modality} {by}, or leave one of them out of the tree"


def _find_labels(
    tree: Tree,
    rules: Rules,
    schema: LabelSchema,
    names: Mapping[str, Name],
    root: Path,
    matched: Mapping[str, Mapping[str, Sequence[Series]]],
    book: _Book,
) -> dict[str, list[Label]]:
    """Find the labels of each study that is to become a case."""
    structures = compile_structures(rules.structures, schema, rules.source)
    labels: dict[str, list[Label]] = defaultdict(list)
    classes: dict[str, list[set[str]]] = defaultdict(list)
    globbed = None if rules.label is None else {p for p in root.glob(rules.label) if p.is_file()}
    objects = {
        instance.path: series for series in tree.series if series.modality in _DESCRIBE for instance in series.instances
    }
    images = {study: [s for found in by.values() for s in found] for study, by in matched.items()}
    studies_of: dict[str, set[str]] = defaultdict(set)  # by UIDs of series, instances and frames of reference alike
    for study, members in images.items():
        for member in members:
            for uid in (member.uid, member.frame_of_reference, *(i.sop_instance_uid for i in member.instances)):
                studies_of[uid].add(study)
    for path, series in objects.items():
        if globbed is not None and path not in globbed:
            continue
        label = Label("SEG" if series.modality == "SEG" else "RTSTRUCT", path, said(series))
        try:
            described = _described(series, path)
        except UserError as error:
            finding = Finding.from_error(names[series.study_uid].case, "dicom-label-unreadable", error)
            what = scrub_quoted(finding.what, identifying_terms([path]))
            book.add(finding.case, "error", finding.code, f"{label.said}: {what}", finding.remedy, [path])
            continue
        owner = _owner(series, described, studies_of) or (series.study_uid if series.study_uid in images else None)
        if owner is None:
            what = f"{label.said} ({label.kind}) belongs to no series that is used"
            remedy = "nothing, if that is meant; else widen the rules to the series that it was drawn on"
            book.add(names[series.study_uid].case, "warning", "dicom-label-unlinked", what, remedy, [path])
            continue
        frames = {s.frame_of_reference for s in images[owner]}
        if described.frame_of_reference and described.frame_of_reference not in frames and all(frames):
            what = f"{label.said} ({label.kind}) lies in another frame of reference than the images"
            remedy = "make sure that it was drawn on them, or on a scan that is registered to them"
            book.add(names[owner].case, "warning", "dicom-label-frame", what, remedy, [path])
        labels[owner].append(label)
        classes[owner].append({c for c, rule in structures.items() if any(map(rule.search, described.names))})
    for path in sorted((globbed or set()) - objects.keys()):
        if len(studies := _nearest(path, root, images)) == 1:
            labels[studies[0]].append(Label("file", path, "the label file"))
        else:
            what = f"a label file lies as near to {len(studies)} studies, so its own cannot be told"
            remedy = "put it into the folder of its study"
            case = names[studies[0]].case if studies else COHORT
            book.add(case, "error", "dicom-label-ambiguous", what, remedy, [path])
    for study, several in labels.items():
        _judge_labels(names[study].case, several, classes[study], book)
    return labels


def _judge_labels(case: str, labels: Sequence[Label], drawn: Sequence[set[str]], book: _Book) -> None:
    """Find labels that compete; `drawn` has the classes of each SEG and RTSTRUCT, which come first."""
    if len(labels) > 1 and any(label.kind == "file" for label in labels):
        what = f"{len(labels)} labels, {' and '.join(label.said for label in labels)}"
        remedy = "choose one by the glob `label` in the rules"
        book.add(case, "error", "dicom-two-labels", what, remedy, [label.path for label in labels])
    for name in sorted(set().union(*drawn)):
        rivals = [label for label, classes in zip(labels, drawn, strict=False) if name in classes]
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


def _nearest(path: Path, root: Path, images: Mapping[str, Sequence[Series]]) -> list[str]:
    """The studies with files in the folder of a label, else in the nearest folder above it that holds any."""
    folders = {study: {i.path.parent for s in members for i in s.instances} for study, members in images.items()}
    if same := [study for study, below in folders.items() if path.parent in below]:
        return same
    for parent in path.parents:
        if near := [s for s, below in folders.items() if any(folder.is_relative_to(parent) for folder in below)]:
            return near
        if parent == root:
            break
    return []


def _files(series: Iterable[Series]) -> list[Path]:
    return [instance.path for one in series for instance in one.instances]
