"""nnU-Net v2 raw data: `imagesTr/CASE_0000.nii.gz` per channel, `labelsTr/CASE.nii.gz`, dataset.json."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest, attributes_from
from medaug.errors import UserError
from medaug.imaging.reading import SUFFIXES, suffix_of
from medaug.inputs import read_json
from medaug.layouts.common import Layout, LayoutFormat, default_subject, image_files, schema_for, stem
from medaug.layouts.rules import Rules


def is_nnunet(data: Mapping[str, Any]) -> bool:
    """Whether a dataset.json has the keys of nnU-Net v2 ("modality" is the old name of "channel_names")."""
    return {"labels", "file_ending"} <= data.keys() and not data.keys().isdisjoint({"channel_names", "modality"})


def read_nnunet(root: Path, rules: Rules) -> Layout:
    """Read a dataset folder; `imagesTs` is left out, because it has no public labels.

    If dataset.json lists the files of its cases under "dataset", those are used, wherever they are; the manifest's root
    is then the common parent folder. A label that is a list of values is a region, and then every other label is one
    too, as in nnU-Net's region-based training. A value that occurs only in lists becomes the class "label N".

    Raises:
        UserError: dataset.json is missing or wrong, or there are no images.
    """
    path = root / "dataset.json"
    data = read_json(path)
    if not is_nnunet(data):
        raise UserError(
            "is not nnU-Net v2's: it lacks channel_names, labels or file_ending", "choose another layout", path=path
        )
    channels = data.get("channel_names", data.get("modality"))
    if not isinstance(channels, dict) or not channels or set(channels) != {str(i) for i in range(len(channels))}:
        raise UserError("channel_names must number the channels from 0", 'write {"0": "T1", "1": "T2"}', path=path)
    modalities = tuple(str(channels[str(i)]) for i in range(len(channels)))
    # medaug.export adds this key for what nnU-Net's format cannot hold: label values, subjects and attributes.
    extra = data.get("medaug")
    own: dict[str, Any] = extra if isinstance(extra, dict) else {}
    declared = {} if "labels" in rules.schema else own if "labels" in own else _schema(data["labels"], str(path))
    if "dataset" in data:
        base, cases, problems = _cases_from_list(root, data["dataset"], modalities, path)
        claimed = {file for case in cases.values() for file in (*case.images, case.label) if file}
    else:
        base = root
        cases, problems, claimed = _cases_from_names(root, data["file_ending"], modalities, path)
    count = data.get("numTraining")
    if isinstance(count, int) and count != len(cases) and all(f.severity != "error" for f in problems):
        what = f"{path}: numTraining is {count}, but there are {len(cases)} cases"
        problems.append(Finding(root.name, "warning", "case-count", what, "add what is missing, or correct the number"))
    subjects = own.get("subjects", {})
    if not isinstance(subjects, dict) or not all(isinstance(subject, str) and subject for subject in subjects.values()):
        raise UserError("medaug.subjects is not a mapping from cases to texts", "correct or remove it", path=path)
    attributes = own.get("attributes", {})
    if not isinstance(attributes, dict):
        raise UserError(
            "medaug.attributes is not a mapping from cases to attributes", "correct or remove it", path=path
        )
    cases = {
        name: replace(
            case,
            subject=subjects.get(name, case.subject),
            attributes=attributes_from(attributes.get(name, {}), f"{path}: case {name}"),
        )
        for name, case in cases.items()
    }
    manifest = Manifest(
        name=str(data.get("name") or root.name),
        description=str(data.get("description") or "nnU-Net raw data"),
        modalities=modalities,
        schema=schema_for(rules, declared, str(path)),
        cases=tuple(cases[name] for name in sorted(cases)),
        root=str(base),
    )
    return Layout("nnunet", manifest, False, tuple(problems), frozenset(claimed))


def _cases_from_names(
    root: Path, ending: Any, modalities: tuple[str, ...], path: Path
) -> tuple[dict[str, Case], list[Finding], set[str]]:
    """Return the cases by the names of the files in imagesTr and labelsTr, their problems, and all these files."""
    if ending not in SUFFIXES:
        raise UserError(
            f"file_ending {ending} cannot be read", f"convert the images to {', '.join(SUFFIXES)}", path=path
        )
    images: dict[str, dict[int, str]] = {}
    labels: dict[str, str] = {}
    problems: list[Finding] = []
    files = [file for file in image_files(root) if PurePosixPath(file).parent.as_posix() in {"imagesTr", "labelsTr"}]
    for file in files:
        name, first = stem(file), file
        if suffix_of(file).lower() != ending:
            what = f"{root / file}: is not used, because it does not end in {ending}"
            problems.append(Finding(root.name, "warning", "other-ending", what, "convert it, or correct file_ending"))
        elif file.startswith("labelsTr"):
            first = labels.setdefault(name, file)
        elif (parts := re.fullmatch(r"(.+)_(\d{4})", name)) and int(parts[2]) < len(modalities):
            name = parts[1]
            first = images.setdefault(name, {}).setdefault(int(parts[2]), file)
        else:
            what = f"{root / file}: is not a channel of dataset.json (0000 to {len(modalities) - 1:04d})"
            remedy = f"name it CASE_0000{ending}, or add the channel to channel_names"
            problems.append(Finding(name, "error", "unknown-modality", what, remedy))
        if first != file:
            what = f"{root / file}: case {name} has both this file and {first}"
            problems.append(Finding(name, "error", "duplicate-file", what, "remove or rename one of them"))
    if not images:
        raise UserError(f"no files CASE_0000{ending}", "check root and file_ending", path=root / "imagesTr")

    cases = {}
    for name, channels in sorted(images.items()):
        missing = [index for index in range(len(modalities)) if index not in channels]
        for index in missing:
            gone = root / "imagesTr" / f"{name}_{index:04d}{ending}"
            what = f"{gone}: {modalities[index]} of case {name} is missing"
            problems.append(Finding(name, "error", "missing-modality", what, "add it, or remove the case"))
        if name not in labels:
            what = f"{root / 'labelsTr' / (name + ending)}: the label of case {name} is missing"
            problems.append(Finding(name, "warning", "missing-label", what, "add it, or leave the scan unlabelled"))
        if not missing:
            cases[name] = Case(
                name, tuple(channels[i] for i in sorted(channels)), labels.get(name), default_subject(name)
            )
    for name in sorted(labels.keys() - images.keys()):
        what = f"{root / labels[name]}: a label without image {name}_0000{ending} in imagesTr"
        problems.append(Finding(name, "error", "unpaired-label", what, "add the image, or remove the label"))
    return cases, problems, set(files)


def _cases_from_list(
    root: Path, entries: Any, modalities: tuple[str, ...], path: Path
) -> tuple[Path, dict[str, Case], list[Finding]]:
    """Return the common parent folder of all files, the cases that dataset.json lists, and their problems."""

    def absolute(file: str) -> str:
        return os.path.normpath(root / os.path.expandvars(file))

    problems: list[Finding] = []
    found: dict[str, tuple[list[str], str | None]] = {}
    if not isinstance(entries, dict) or not entries:
        raise UserError("dataset is empty", 'write {"CASE": {"images": [...], "label": "..."}} or remove it', path=path)
    for name, entry in sorted(entries.items()):
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        files = [*images, *([] if label is None else [label])] if isinstance(images, list) else []
        if not isinstance(images, list) or not images or not all(isinstance(file, str) and file for file in files):
            raise UserError(
                f"dataset lacks the files of case {name}", 'write {"images": ["..."], "label": "..."}', path=path
            )
        if len(images) != len(modalities):
            what = f"{path}: case {name} lists {len(images)} images for {len(modalities)} channels"
            problems.append(Finding(name, "error", "missing-modality", what, "list one image per channel"))
            continue
        if label is None:
            what = f"{path}: case {name} lists no label"
            problems.append(Finding(name, "warning", "missing-label", what, "add it, or leave the scan unlabelled"))
        found[name] = ([absolute(file) for file in images], None if label is None else absolute(label))
    folders = [
        os.path.dirname(file) for images, label in found.values() for file in (*images, *([label] if label else []))
    ]
    base = Path(os.path.commonpath([root, *folders]))
    cases = {
        name: Case(
            name,
            tuple(Path(file).relative_to(base).as_posix() for file in images),
            None if label is None else Path(label).relative_to(base).as_posix(),
            default_subject(name),
        )
        for name, (images, label) in found.items()
    }
    return base, cases, problems


def _schema(labels: Any, source: str) -> dict[str, Any]:
    """Convert nnU-Net's labels (name -> value or list of values) to the form that `LabelSchema.from_mapping` reads."""
    if not isinstance(labels, dict):
        raise UserError("labels is not a mapping", 'write {"background": 0, "tumour": 1}', path=source)
    values: dict[str, list[int]] = {}
    for name, value in labels.items():
        values[name] = value if isinstance(value, list) else [value]
        if not values[name] or not all(type(v) is int for v in values[name]):
            raise UserError(f"label {name} is {value!r:.60}", "write a whole number, or a list of them", path=source)
    ignore = values.pop("ignore", None)
    if ignore is not None and len(ignore) != 1:
        raise UserError(f"label ignore is {ignore}", "write one whole number", path=source)
    names: dict[int, str] = {}
    for name, members in values.items():
        if len(members) == 1 and names.setdefault(members[0], name) != name:
            raise UserError(f"labels {names[members[0]]} and {name} are both {members[0]}", "remove one", path=source)
    for value in sorted({v for members in values.values() for v in members} - names.keys()):
        names[value] = f"label {value}"
    regions = {name: members for name, members in values.items() if members != [0]}
    return {
        "labels": {str(value): name for value, name in names.items()},
        **({"regions": regions} if any(len(members) > 1 for members in regions.values()) else {}),
        **({} if ignore is None else {"ignore": ignore[0]}),
    }


NNUNET = LayoutFormat(read_nnunet, unused="dataset.json does not use it for training", has_dataset=is_nnunet)
