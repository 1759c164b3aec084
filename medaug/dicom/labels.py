"""Which SEG, RTSTRUCT or label file of a DICOM tree belongs to which study."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medaug.cohort.schema import LabelSchema
from medaug.dicom.findings import COHORT, FindingLog
from medaug.dicom.headers import Series, Tree, is_skipped
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
    """Find the labels of each study that will become a case.

    Args:
        tree: what `scan_tree` found.
        rules: the glob `label` selects from all SEG and RTSTRUCT, and adds other files; `structures` maps names to
            classes.
        schema: schema of the labels.
        names: study UID to its names.
        root: the folder that the glob is relative to.
        matched: study UID to modality to series, for the studies that will become cases.
        log: receives the findings.

    Raises:
        UserError: the glob or a pattern is not valid.
    """
    globbed = None if rules.label is None else set(_glob(rules.label, root, rules.source))
    if globbed is not None and not globbed:
        remedy = "correct the glob, or remove it and the labels from the rules if there are no label files"
        log.add(COHORT, "error", "dicom-label-glob", "no file matches the glob `label` of the rules", remedy, ())
    objects = {one: series for series in tree.series if series.modality in DESCRIBE for one in series.instances}
    wanted = {one: series for one, series in objects.items() if globbed is None or globbed.intersection(one.paths)}
    images = {study: [series for found in by.values() for series in found] for study, by in matched.items()}
    labels: dict[str, list[Label]] = defaultdict(list)
    structures = compile_structures(rules.structures, schema, rules.source)
    for study, found in link_objects(wanted, tree, images, globbed is not None, names, log).items():
        labels[study] += [drawing.label for drawing in found]
        _report_rivals(names[study].case, structures, found, log)
    folders: dict[str, set[Path]] = defaultdict(set)  # of all studies: a label may belong to one that is left out
    for series in filter(is_image, tree.series):
        folders[series.study_uid] |= {path.parent for path in series.paths}
    for path in sorted((globbed or set()) - {path for one in objects for path in one.paths}):
        studies = _nearest(path, root, folders)
        if len(studies) != 1:
            what = f"a label file could belong to any of {len(studies)} studies, which are in equally near folders"
            case = names[studies[0]].case if studies else COHORT
            log.add(case, "error", "dicom-label-ambiguous", what, "put it into the folder of its study", [path])
        elif studies[0] in images:
            labels[studies[0]].append(Label("file", path, "the label file"))
        else:
            what, remedy = "the label file belongs to a study that is left out", "nothing to do if that is intended"
            log.add(names[studies[0]].case, "warning", "dicom-label-unlinked", what, remedy, [path])
    for study, several in labels.items():
        if len(several) > 1 and any(label.kind == "file" for label in several):
            what = f"{len(several)} labels, {' and '.join(label.title for label in several)}"
            remedy = "choose one by the glob `label` in the rules"
            log.add(names[study].case, "error", "dicom-two-labels", what, remedy, [label.path for label in several])
    return labels


def _glob(pattern: str, root: Path, source: str) -> list[Path]:
    """Return the files that match, without those that `scan_tree` skips, such as macOS's ._X beside X."""
    try:
        found = [path for path in root.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:
        what = f"label: {pattern} is not a glob below root ({error})"
        raise UserError(what, "write it relative to root", path=source) from None
    return [p for p in found if not any(is_skipped(part) for part in p.relative_to(root).parts)]


def _report_rivals(
    case: str, structures: Mapping[str, re.Pattern[str]], drawings: Sequence[Drawing], log: FindingLog
) -> None:
    """Report the classes that several SEG and RTSTRUCT contain: it is not known which one to use."""
    for name, rule in structures.items():
        rivals = [drawing for drawing in drawings if any(map(rule.search, drawing.header.names))]
        if len(rivals) > 1:
            what = f"{name} is contained in {' and in '.join(drawing.title for drawing in rivals)}"
            remedy = (
                "make its pattern in `structures` match one of them, or choose files by the glob `label` in the rules"
            )
            log.add(case, "error", "dicom-two-labels", what, remedy, [drawing.label.path for drawing in rivals])


def _nearest(path: Path, root: Path, folders: Mapping[str, set[Path]]) -> list[str]:
    """Return the studies with files in the folder of a label, or else below the nearest parent folder with any."""
    if same := [study for study, below in folders.items() if path.parent in below]:
        return same
    for parent in path.parents:
        if near := [s for s, below in folders.items() if any(folder.is_relative_to(parent) for folder in below)]:
            return near
        if parent == root:
            break
    return []


def list_structures(tree: Tree) -> str:
    """List the names of segments and regions of interest in a tree, most frequent first, without patients' names."""
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
