"""Which series of a DICOM tree is which modality of which case, and which object is its label."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medaug.cohort.findings import Finding, Severity
from medaug.cohort.schema import LabelSchema
from medaug.dicom.findings import COHORT, FindingLog, files_of
from medaug.dicom.headers import Series, Tree
from medaug.dicom.instance import Instance
from medaug.dicom.keywords import ATTRIBUTES
from medaug.dicom.labels import MOST_LISTED, find_labels
from medaug.dicom.links import Label
from medaug.dicom.masks import one_line
from medaug.dicom.privacy import Name, identifying_terms, scrub
from medaug.dicom.series import is_image, series_header, series_problems
from medaug.errors import UserError
from medaug.imaging.volume import times
from medaug.layouts.rules import NO_RULES, Rules

Pattern = Mapping[str, re.Pattern[str]]


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
    log = FindingLog()
    tree = _without_excluded(tree, rules, names, log)
    patterns = _compile(tree, rules)
    _report_unreadable(tree, log)
    matched = _match_studies(tree, patterns, names, on_gap, log)
    labels = find_labels(tree, rules, schema, names, root, matched, log)
    wrong = {finding.case for finding in log.files if finding.severity == "error"}
    cases = [
        PlannedCase(names[study], study, tuple(members[0] for members in found.values()), tuple(labels[study]))
        for study, found in matched.items()
        if names[study].case not in wrong
    ]
    _judge_polarity(list(patterns), cases, log)
    if schema.foreground:
        for case in cases:
            if not case.labels:
                what = "the study has no label"
                remedy = "add one, or leave it as an unlabelled scan"
                log.add(case.name.case, "warning", "dicom-label-missing", what, remedy, ())
    return Plan(
        modalities=tuple(patterns),
        schema=schema,
        structures=rules.structures,
        cases=tuple(cases),
        findings=tuple(log.files),
        files=log.files,
        on_gap=on_gap,
        on_grid=on_grid,
    )


def _match_studies(
    tree: Tree, patterns: Mapping[str, Pattern], names: Mapping[str, Name], on_gap: str, log: FindingLog
) -> dict[str, dict[str, list[Series]]]:
    """Study UID to modality to the series that its rule matches, of the studies that become cases."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in tree.series:
        studies[series.study_uid].append(series)
    matched: dict[str, dict[str, list[Series]]] = {}
    for study in sorted(studies, key=lambda uid: names[uid].case):
        copied = [one for series in studies[study] for one in series.instances if one.copies]
        if copied:
            what = f"{len(copied)} file(s) are there several times, byte for byte, and are read once"
            files = [path for one in copied for path in one.paths]
            log.add(names[study].case, "note", "dicom-copies", what, "nothing, if that is meant", files)
        images = [series for series in studies[study] if is_image(series)]
        if images:
            found = {name: [s for s in images if matches(s.attributes, pattern)] for name, pattern in patterns.items()}
            if _judge_study(names[study].case, images, found, on_gap, log):
                matched[study] = found
    return matched


def _report_unreadable(tree: Tree, log: FindingLog) -> None:
    for reason, count in Counter(reason for _, reason in tree.unreadable).items():
        files = [path for path, its_reason in tree.unreadable if its_reason == reason]
        what = f"{count} file(s) cannot be read ({reason})"
        log.add(COHORT, "error", "dicom-unreadable", what, "mend or remove them; the private file lists them", files)


def matches(attributes: Mapping[str, str], pattern: Pattern) -> bool:
    """Whether every pattern is found in the attribute of its name, in upper or lower case."""
    return all(rule.search(attributes.get(keyword, "")) for keyword, rule in pattern.items())


def list_series(tree: Tree) -> str:
    """The distinct kinds of image series in a tree, a line each, most frequent first, without the patients' names."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for series in tree.series:
        if is_image(series):
            terms = identifying_terms([series.instances[0].path])
            description = scrub(one_line(series.attributes.get("SeriesDescription"), ""), terms)
            try:
                shape = times(series_header(series).shape)
            except UserError:
                shape = f"{len(series.instances)} files"
            kinds[description, series.modality, shape] += 1
    lines = [f'  {count} x {kind[1]} "{kind[0]}" ({kind[2]})' for kind, count in kinds.most_common(MOST_LISTED)]
    return "\n".join(lines + ([f"  and {len(kinds) - MOST_LISTED} more kinds"] if len(kinds) > MOST_LISTED else []))


def _compile(tree: Tree, rules: Rules) -> dict[str, Pattern]:
    if not rules.modalities:
        raise UserError(
            f"{'rules=FILE.yaml' if rules == NO_RULES else rules.source}: no modalities, so nothing says which series "
            "is which",
            "write in that file patterns that are found in the series' attributes, such as\n"
            '  modalities:\n    T1: {SeriesDescription: "^t1.*post"}\n'
            "    FLAIR: {SeriesDescription: flair, ImageType: original}\nThe tree holds\n" + list_series(tree),
        )
    return {
        modality: _compile_rule(rule, f"{rules.source}: modality {modality}")
        for modality, rule in rules.modalities.items()
    }


def _compile_rule(rule: str | Mapping[str, str], where: str) -> Pattern:
    compiled = {}
    for keyword, text in ({"SeriesDescription": rule} if isinstance(rule, str) else rule).items():
        if keyword not in ATTRIBUTES:
            close = difflib.get_close_matches(keyword, ATTRIBUTES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"those are {', '.join(sorted(ATTRIBUTES))}"
            raise UserError(f"{where}: {keyword} is no keyword that rules know", hint)
        try:
            compiled[keyword] = re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise UserError(f'{where}: "{text}" is no regular expression ({error})', "mend it") from error
    return compiled


def _without_excluded(tree: Tree, rules: Rules, names: Mapping[str, Name], log: FindingLog) -> Tree:
    """The tree without the files that the rules leave out, file by file: a localizer may share a series with slices."""
    patterns = [_compile_rule(rule, f"{rules.source}: exclude_series") for rule in rules.exclude_series]
    used: set[int] = set()
    kept = []
    for series in tree.series:
        instances: list[Instance] = []
        excluded: list[Instance] = []
        for one in series.instances:
            matching = {index for index, pattern in enumerate(patterns) if matches(one.attributes, pattern)}
            used |= matching
            (excluded if matching else instances).append(one)
        if excluded:
            what = f"{series.title}: exclude_series leaves out {len(excluded)} of its {len(series.instances)} files"
            files = [path for one in excluded for path in one.paths]
            log.add(names[series.study_uid].case, "note", "dicom-excluded", what, "nothing, if that is meant", files)
        if instances:
            kept.append(series.keeping(instances))
    for index, rule in enumerate(rules.exclude_series):
        if index not in used:
            text = rule if isinstance(rule, str) else ", ".join(f"{key}:{pattern}" for key, pattern in rule.items())
            remedy = "mend its pattern, or take the rule away"
            log.add(COHORT, "warning", "dicom-excluded", f"exclude_series: no file matches {text}", remedy, ())
    return replace(tree, series=tuple(kept))


def _judge_study(
    case: str, images: Sequence[Series], found: Mapping[str, Sequence[Series]], on_gap: str, log: FindingLog
) -> bool:
    """Find what is wrong with a study's images; returns whether it is to become a case at all."""
    used = {series.uid for members in found.values() for series in members}
    if unused := [series for series in images if series.uid not in used]:
        listed = ", ".join(sorted({series.title for series in unused}))
        if not used:
            what = f"no series matches a rule, so the study is left out ({listed})"
            remedy = "widen the rules, unless it is meant to be left out"
            log.add(case, "warning", "dicom-study-not-used", what, remedy, files_of(unused))
            return False
        what = f"{listed}: no rule matches"
        log.add(case, "note", "dicom-not-used", what, "nothing, if that is meant", files_of(unused))
    if len(patients := {series.patient_id for series in images}) > 1:
        what = f"one study has {len(patients)} PatientIDs"
        log.add(case, "error", "dicom-two-patients", what, "correct the headers, or leave it out", files_of(images))
    if "" in patients:
        what = "the study has no PatientID and counts as a subject of its own"
        remedy = "give the subjects with subjects=FILE.csv if a person has several studies"
        log.add(case, "warning", "dicom-no-patient-id", what, remedy, files_of(images)[:1])
    for modality, members in found.items():
        if not members:
            what, remedy = f"no series matches {modality}", f"widen the rule for {modality}, or leave the study out"
            log.add(case, "error", "dicom-missing-modality", what, remedy, ())
        elif len(members) > 1:
            what = f"{modality} is matched by {' and '.join(series.title for series in members)}"
            log.add(case, "error", "dicom-two-series", what, _narrower(modality, members), files_of(members))
    for series in images:
        names = [name for name, members in found.items() if any(member.uid == series.uid for member in members)]
        if len(names) > 1:
            what = f"{series.title} is matched by the rules of {' and '.join(names)}"
            log.add(case, "error", "dicom-two-rules", what, "narrow one of the rules", files_of([series]))
        for problem in series_problems(series) if names else ():
            mended = on_gap == "resample" and problem.code == "gap"
            what = f"{series.title}: {problem.what}"
            severity: Severity = "note" if mended else problem.severity
            remedy = "nothing: it is resampled over the gap" if mended else problem.remedy
            log.add(case, severity, f"dicom-{problem.code}", what, remedy, files_of([series]))
    return True


def _judge_polarity(modalities: Sequence[str], cases: Sequence[PlannedCase], log: FindingLog) -> None:
    """Find scans whose values may be inverted against those of the other cases."""
    for index, modality in enumerate(modalities):
        inverted = [case for case in cases if _is_inverted(case.series[index])]
        if len(inverted) == len(cases):
            continue
        for case in inverted:
            series = case.series[index]
            rest = len(cases) - len(inverted)
            what = (
                f"{modality} ({series.title}) is MONOCHROME1 (small values are bright), in {rest} other cases it is not"
            )
            remedy = (
                "look whether its contrast is inverted; if so, invert its values first, or leave it out with "
                "exclude_series=[PhotometricInterpretation:MONOCHROME1]"
            )
            log.add(case.name.case, "warning", "dicom-monochrome1", what, remedy, files_of([series]))


def _is_inverted(series: Series) -> bool:
    first = series.instances[0]
    # Hounsfield units mean the same however they are shown.
    return first.photometric == "MONOCHROME1" and first.planes[0].rescale_type != "HU"


def _narrower(modality: str, members: Sequence[Series]) -> str:
    """Say by which attributes series can be told apart; not their values, which may name somebody."""
    telling = sorted(k for k in ATTRIBUTES if len({series.attributes.get(k, "") for series in members}) > 1)
    by = f"by {', '.join(telling[:6])}, in which they differ" if telling else "(no attribute tells them apart)"
    return f"narrow the rule for {modality} {by}, or leave one of them out with exclude_series"
