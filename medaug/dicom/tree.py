"""Plans a cohort from a DICOM tree: which series is which modality of which case, and which object is its label."""

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
from medaug.imaging.volume import shape_text
from medaug.layouts.rules import NO_RULES, Rules

Pattern = Mapping[str, re.Pattern[str]]


@dataclass(frozen=True)
class PlannedCase:
    """A case to be converted: one series per modality, in the order of the rules, and the files of its label."""

    name: Name
    study: str
    series: tuple[Series, ...]
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The cohort that a tree will become.

    Attributes:
        modalities: names of the modalities, in the order of the rules.
        schema: schema of the labels.
        structures: class to the pattern for the names of its segments.
        cases: the complete cases.
        findings: all problems found so far.
        files: the files that each finding is about.
        on_gap: "refuse" or "resample", for `read_series`.
        on_grid: "refuse" or "resample" modalities whose grid differs from that of the first.
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
    """Decide how every series is used, without reading voxels: one case per study that has all modalities.

    Args:
        tree: what `scan_tree` found.
        rules: modalities, structures, and the glob of label files (NIfTI, SEG or RTSTRUCT; None: all SEG and RTSTRUCT).
        schema: schema of the labels.
        names: study UID to its names (`name_studies`).
        root: the folder that the glob is relative to.
        on_gap: if "resample", a missing slice is not an error.
        on_grid: stored in the plan.

    Raises:
        UserError: the rules name no modality (the message lists the series), an unknown keyword, or a pattern that is
            not a regular expression.
    """
    log = FindingLog()
    tree = _without_excluded(tree, rules, names, log)
    patterns = _compile(tree, rules)
    _report_unreadable(tree, log)
    matched = _match_studies(tree, patterns, names, on_gap, log)
    labels = find_labels(tree, rules, schema, names, root, matched, log)
    faulty = {finding.case for finding in log.files if finding.severity == "error"}
    cases = [
        PlannedCase(names[study], study, tuple(members[0] for members in found.values()), tuple(labels[study]))
        for study, found in matched.items()
        if names[study].case not in faulty
    ]
    _check_polarity(list(patterns), cases, log)
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
    """Return study UID to modality to the series that its rule matches, for the studies that become cases."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in tree.series:
        studies[series.study_uid].append(series)
    matched: dict[str, dict[str, list[Series]]] = {}
    for study in sorted(studies, key=lambda uid: names[uid].case):
        copied = [one for series in studies[study] for one in series.instances if one.copies]
        if copied:
            what = f"{len(copied)} file(s) have identical copies, which are not read"
            files = [path for one in copied for path in one.paths]
            log.add(names[study].case, "note", "dicom-copies", what, "nothing to do if that is intended", files)
        images = [series for series in studies[study] if is_image(series)]
        if images:
            found = {name: [s for s in images if matches(s.attributes, pattern)] for name, pattern in patterns.items()}
            if _check_study(names[study].case, images, found, on_gap, log):
                matched[study] = found
    return matched


def _report_unreadable(tree: Tree, log: FindingLog) -> None:
    for reason, count in Counter(reason for _, reason in tree.unreadable).items():
        files = [path for path, its_reason in tree.unreadable if its_reason == reason]
        what = f"{count} file(s) cannot be read ({reason})"
        log.add(COHORT, "error", "dicom-unreadable", what, "restore or remove them; the private file lists them", files)


def matches(attributes: Mapping[str, str], pattern: Pattern) -> bool:
    """Whether every pattern is found in the attribute with its keyword, ignoring case."""
    return all(rule.search(attributes.get(keyword, "")) for keyword, rule in pattern.items())


def list_series(tree: Tree) -> str:
    """List the distinct kinds of image series in a tree, one per line, most frequent first, without patients' names."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for series in tree.series:
        if is_image(series):
            terms = identifying_terms([series.instances[0].path])
            description = scrub(one_line(series.attributes.get("SeriesDescription"), ""), terms)
            try:
                shape = shape_text(series_header(series).shape)
            except UserError:
                shape = f"{len(series.instances)} files"
            kinds[description, series.modality, shape] += 1
    lines = [f'  {count} x {kind[1]} "{kind[0]}" ({kind[2]})' for kind, count in kinds.most_common(MOST_LISTED)]
    return "\n".join(lines + ([f"  and {len(kinds) - MOST_LISTED} more kinds"] if len(kinds) > MOST_LISTED else []))


def _compile(tree: Tree, rules: Rules) -> dict[str, Pattern]:
    if not rules.modalities:
        raise UserError(
            "no modalities, so it is not known which series is which",
            "write patterns for the series' attributes in that file, such as\n"
            '  modalities:\n    T1: {SeriesDescription: "^t1.*post"}\n'
            "    FLAIR: {SeriesDescription: flair, ImageType: original}\nThe tree holds\n" + list_series(tree),
            path="rules=FILE.yaml" if rules == NO_RULES else rules.source,
        )
    return {
        modality: _compile_rule(rule, f"modality {modality}", rules.source)
        for modality, rule in rules.modalities.items()
    }


def _compile_rule(rule: str | Mapping[str, str], where: str, path: str) -> Pattern:
    compiled = {}
    for keyword, text in ({"SeriesDescription": rule} if isinstance(rule, str) else rule).items():
        if keyword not in ATTRIBUTES:
            close = difflib.get_close_matches(keyword, ATTRIBUTES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(sorted(ATTRIBUTES))}"
            raise UserError(f"{where}: {keyword} is not a keyword that rules can use", hint, path=path)
        try:
            compiled[keyword] = re.compile(text, re.IGNORECASE)
        except re.error as error:
            what = f'{where}: "{text}" is not a regular expression ({error})'
            raise UserError(what, "correct it", path=path) from error
    return compiled


def _without_excluded(tree: Tree, rules: Rules, names: Mapping[str, Name], log: FindingLog) -> Tree:
    """Remove the files that the rules exclude; single files, because a localizer may be in a series with slices."""
    patterns = [_compile_rule(rule, "exclude_series", rules.source) for rule in rules.exclude_series]
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
            log.add(
                names[series.study_uid].case, "note", "dicom-excluded", what, "nothing to do if that is intended", files
            )
        if instances:
            kept.append(series.with_instances(instances))
    for index, rule in enumerate(rules.exclude_series):
        if index not in used:
            text = rule if isinstance(rule, str) else ", ".join(f"{key}:{pattern}" for key, pattern in rule.items())
            remedy = "correct its pattern, or remove the rule"
            log.add(COHORT, "warning", "dicom-excluded", f"exclude_series: no file matches {text}", remedy, ())
    return replace(tree, series=tuple(kept))


def _check_study(
    case: str, images: Sequence[Series], found: Mapping[str, Sequence[Series]], on_gap: str, log: FindingLog
) -> bool:
    """Report problems of a study's images; returns False if no rule matches any of them."""
    used = {series.uid for members in found.values() for series in members}
    if unused := [series for series in images if series.uid not in used]:
        listed = ", ".join(sorted({series.title for series in unused}))
        if not used:
            what = f"no series matches a rule, so the study is left out ({listed})"
            remedy = "widen the rules, unless that is intended"
            log.add(case, "warning", "dicom-study-not-used", what, remedy, files_of(unused))
            return False
        what = f"{listed}: no rule matches"
        log.add(case, "note", "dicom-not-used", what, "nothing to do if that is intended", files_of(unused))
    if len(patients := {series.patient_id for series in images}) > 1:
        what = f"one study has {len(patients)} PatientIDs"
        log.add(case, "error", "dicom-two-patients", what, "correct the headers, or leave it out", files_of(images))
    if "" in patients:
        what = "the study has no PatientID and counts as a subject of its own"
        remedy = "give the subjects with subjects=FILE.csv if a person has several studies"
        log.add(case, "warning", "dicom-no-patient-id", what, remedy, files_of(images)[:1])
    for modality, members in found.items():
        if not members:
            there = ", ".join(sorted({series.title for series in images}))
            what = f"no series matches {modality} (there are {there})"
            remedy = f"widen the rule for {modality}, or leave the study out"
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
            solved = on_gap == "resample" and problem.code == "gap"
            what = f"{series.title}: {problem.what}"
            severity: Severity = "note" if solved else problem.severity
            remedy = "nothing to do: the gap is interpolated" if solved else problem.remedy
            log.add(case, severity, f"dicom-{problem.code}", what, remedy, files_of([series]))
    return True


def _check_polarity(modalities: Sequence[str], cases: Sequence[PlannedCase], log: FindingLog) -> None:
    """Report scans whose values may be inverted compared with those of the other cases."""
    for index, modality in enumerate(modalities):
        inverted = [case for case in cases if _is_inverted(case.series[index])]
        if len(inverted) == len(cases):
            continue
        for case in inverted:
            series = case.series[index]
            rest = len(cases) - len(inverted)
            what = (
                f"{modality} ({series.title}) is MONOCHROME1 (small values are bright); in {rest} other cases it is not"
            )
            remedy = (
                "check whether its contrast is inverted; if so, invert its values first, or leave it out with "
                "exclude_series=[PhotometricInterpretation:MONOCHROME1]"
            )
            log.add(case.name.case, "warning", "dicom-monochrome1", what, remedy, files_of([series]))


def _is_inverted(series: Series) -> bool:
    first = series.instances[0]
    # Hounsfield units have the same meaning, however they are displayed.
    return first.photometric == "MONOCHROME1" and first.planes[0].rescale_type != "HU"


def _narrower(modality: str, members: Sequence[Series]) -> str:
    """Suggest attributes that distinguish the series; without values, which may name somebody."""
    differing = sorted(k for k in ATTRIBUTES if len({series.attributes.get(k, "") for series in members}) > 1)
    by = f"by {', '.join(differing[:6])}, in which they differ" if differing else "(no attribute distinguishes them)"
    return f"narrow the rule for {modality} {by}, or leave one of them out with exclude_series"
