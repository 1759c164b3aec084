"""Medical Segmentation Decathlon: a dataset.json that lists its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.manifest import Manifest
from medaug.imaging.layouts.common import Layout, schema_for, stem
from medaug.imaging.rules import SCHEMA_KEYS, Rules
from medaug.inputs import read_json


def read_msd(root: Path, rules: Rules) -> Layout:
    """Read a task: dataset.json and the 3-D or 4-D files that it lists.

    Modalities and labels come from dataset.json; its "test" images, without public labels, are left out.
    Splits that it may name are left to the options, as in every layout.
    Each case is its own subject: nothing in the layout says more, see `medaug.cohort.splits.subject_of`.

    Raises:
        UserError: dataset.json is missing or wrong.
    """
    path = root / "dataset.json"
    data = read_json(path)
    declared = {key: data.pop(key) for key in SCHEMA_KEYS if key in data}
    schema = schema_for(rules, declared, str(path))
    entries = data.get("training")
    if isinstance(entries, list):
        data["training"] = [_named(entry) for entry in entries if not _is_apple_double(entry)]
    manifest = Manifest.from_mapping(data | schema.to_mapping(), root, str(path))
    cases = sorted((replace(case, split="train") for case in manifest.cases), key=lambda case: case.name)
    return Layout("msd", replace(manifest, cases=tuple(cases)), proposed=False)


def _image(entry: Any) -> str:
    image = entry.get("image") if isinstance(entry, dict) else None
    return image if isinstance(image, str) else ""


def _is_apple_double(entry: Any) -> bool:
    return PurePosixPath(_image(entry)).name.startswith("._")


def _named(entry: Any) -> Any:
    return {"name": stem(_image(entry)), **entry} if _image(entry) else entry
