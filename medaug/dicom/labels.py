"""Which SEG, RTSTRUCT or label file of a DICOM tree belongs to which study."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medaug.cohort.schema import LabelSchema
from medaug.dicom.findings import COHORT, FindingLog
from medaug.dicom.headers import Series, Tree, is_passed_over
from medaug.dicom.links import DESCRIBE, Drawing, Label, describe, link_objects
from medaug.dicom.masks import compile_structures
from medaug.dicom.privacy import Name, identifying_terms, scrub
from medaug.dicom.series import is_image
from medaug.errors import UserError
from medaug.layouts.rules import Rules

MOST_LISTED = 40


def find_labels(
    tree: Tree,
    rules: Rules,
    schema: LabelSchema,
    names: Mapping[str, Name],
    root: Path,
    matched: Mapping[str, Mapping[str, Sequence[Series]]],
    log: FindingLog,
) -> dict[str, list[Label]]:
    """Find the labels of each study that is to become a case.

    Args:
        tree: of `scan_tree`.
        rules: the glob `label` chooses among all SEG and RTSTRUCT, and adds other files; `structures` names classes.
        schema: of the labels.
        names: study UID to its names.
        root: the folder that the glob starts from.
        matched: study UID to modality to series, of the studies that are to become cases.
        log: receives the findings.

    Raises:
        UserError: the glob or a pattern is none.
    """
    globbed = None if rules.label is None else set(_glob(rules.label, root, rules.source))
    if globbed is not None and not globbed:
        remedy = "mend the glob, or take it and the labels out of the rules if there are none"
        log.add(COHORT, "error", "dicom-label-glob", "no file matches the glob `label` of the rules", remedy, ())
    objects = {one: series for series in tree.series if series.modality in DESCRIBE for one in series.instances}
    wanted = {one: series for one, series in objects.items() if globbed is None or globbed.intersection(one.paths)}
    images = {study: [series for found in by.values() for series in found] for study, by in matched.items()}
    labels: dict[str, list[Label]] = defaultdict(list)
    structures = compile_structures(rules.structures, schema, rules.source)
    for study, found in link_objects(wanted, tree, images, globbed is not None, names, log).items():
        labels[study] += [drawing.label for drawing in found]
        _judge_rivals(names[study].case, structures, found, log)
    folders: dict[str, set[Path]] = defaultdict(set)  # of all studies: a label may belong to one that is left out
    for series in filter(is_image, tree.series):
        folders[series.study_uid] |= {path.parent for path in series.paths}
    for path in sorted((globbed or set()) - {path for one in objects for path in one.paths}):
        studies = _nearest(path, root, folders)
        if len(studies) != 1:
            what = f"a label file lies as near to {len(studies)} studies, so its own cannot be told"
            case = names[studies[0]].case if studies else COHORT
            log.add(case, "error", "dicom-label-ambiguous", what, "put it into the folder of its study", [path])
        elif studies[0] in images:
            labels[studies[0]].append(Label("file", path, "the label file"))
        else:
            what, remedy = "the label file belongs to a study that is left out", "nothing, if that is meant"
            log.add(names[studies[0]].case, "warning", "dicom-label-unlinked", what, remedy, [path])
    for study, several in labels.items():
        if len(several) > 1 and any(label.kind == "file" for label in several):
            what = f"{len(several)} labels, {' and '.join(label.said for label in several)}"
            remedy = "choose one by the glob `label` in the rules"
            log.add(names[study].case, "error", "dicom-two-labels", what, remedy, [label.path for label in several])
    return labels


def _glob(pattern: str, root: Path, source: str) -> list[Path]:
    """The files that match, but for those that `scan_tree` passes over, such as the ._X beside X of macOS."""
    try:
        found = [path for path in root.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:
        what = f"label: {pattern} is no glob below root ({error})"
        raise UserError(f"{source}: {what}", "write it relative to root") from None
    return [p for p in found if not any(is_passed_over(part) for part in p.relative_to(root).parts)]


def _judge_rivals(
    case: str, structures: Mapping[str, re.Pattern[str]], drawings: Sequence[Drawing], log: FindingLog
) -> None:
    """Find the classes that several SEG and RTSTRUCT draw: nothing says which of them is meant."""
    for name, rule in structures.items():
        rivals = [drawing for drawing in drawings if any(map(rule.search, drawing.holds.names))]
        if len(rivals) > 1:
            what = f"{name} is drawn by {' and by '.join(drawing.title for drawing in rivals)}"
            remedy = (
                "make its pattern in `structures` match one of them, or choose files by the glob `label` in the rules"
            )
            log.add(case, "error", "dicom-two-labels", what, remedy, [drawing.label.path for drawing in rivals])


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
        for instance in series.instances if series.modality in DESCRIBE else ():
            try:
                described = describe(series, instance.path)
            except UserError:
                continue
            counts.update({scrub(name, identifying_terms([instance.path])) for name in described.names})
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_LISTED]
    return ", ".join(f'"{name}" ({count})' for name, count in frequent)
