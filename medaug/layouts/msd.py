"""Medical Segmentation Decathlon: a dataset.json that lists its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Manifest
from medaug.imaging.reading import suffix_of
from medaug.inputs import read_json
from medaug.layouts.common import Layout, LayoutFormat, schema_for, stem
from medaug.layouts.rules import SCHEMA_KEYS, Rules


def read_msd(root: Path, rules: Rules) -> Layout:
    """Read a task: dataset.json and the 3-D or 4-D files that it lists.

    Modalities and labels come from dataset.json. Its "test" images are left out, because they have no public labels.
    Splits in it are ignored; as in every layout, the options decide. Each case is its own subject, because the layout
    does not name subjects (see `medaug.cohort.splits.subject_of`). nnU-Net version 1 has the same dataset.json and
    lists CASE.nii.gz, but stores one file per modality, CASE_0000.nii.gz and so on; these are read instead.

    Raises:
        UserError: dataset.json is missing or wrong.
    """
    path = root / "dataset.json"
    data = read_json(path)
    declared = {key: data.pop(key) for key in SCHEMA_KEYS if key in data}
    schema = schema_for(rules, declared, str(path))
    entries = data.get("training")
    problems = []
    if isinstance(entries, list):
        entries = [_with_name(entry) for entry in entries if not _is_apple_double(entry)]
        data["training"] = [_with_channels(entry, root, len(data.get("modality") or ())) for entry in entries]
        if data["training"] != entries:
            what = f"{path}: lists images that are stored by channel (CASE_0000, ...), as nnU-Net version 1 does"
            problems.append(
                Finding(root.name, "note", "nnunet-v1", what, "nothing to do: the channels are read as modalities")
            )
    manifest = Manifest.from_mapping(data | schema.to_mapping(), root, str(path))
    cases = sorted((replace(case, split="train") for case in manifest.cases), key=lambda case: case.name)
    claimed = {file for case in cases for file in (*case.images, case.label) if file}
    return Layout("msd", replace(manifest, cases=tuple(cases)), False, tuple(problems), frozenset(claimed))


def _image(entry: Any) -> str:
    image = entry.get("image") if isinstance(entry, dict) else None
    return image if isinstance(image, str) else ""


def _with_channels(entry: Any, root: Path, channels: int) -> Any:
    """Return the entry with one image per channel if its image does not exist, but its first channel does."""
    image = _image(entry)
    suffix = suffix_of(image)
    files = [f"{image.removesuffix(suffix)}_{channel:04d}{suffix}" for channel in range(channels)]
    if not image or not files or (root / image).exists() or not (root / files[0]).exists():
        return entry
    return {**entry, "image": files[0] if channels == 1 else files}


def _is_apple_double(entry: Any) -> bool:
    return PurePosixPath(_image(entry)).name.startswith("._")


def _with_name(entry: Any) -> Any:
    return {"name": stem(_image(entry)), **entry} if _image(entry) else entry


MSD = LayoutFormat(
    read_msd,
    unused="dataset.json does not list it for training",
    has_dataset=lambda data: {"modality", "training"} <= data.keys(),
)
