"""What the files of a cohort hold, by digest, whatever they are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.seen import Contents
from medaug.data.cache import content_digests
from medaug.data.cases import ModelCase
from medaug.errors import UserError


def case_contents(manifest: Manifest, cases: Iterable[Case], cache: Path) -> dict[str, list[str]]:
    """The contents of cases, read once: see `content_digests`.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    files = {case.name: manifest.files(case) for case in cases}
    digests = content_digests((path for paths in files.values() for path in paths), cache)
    return {name: [digests[path] for path in paths] for name, paths in files.items()}


def cohort_digest(manifest: Manifest, contents: Contents) -> str:
    """SHA-256 of what makes a cohort: its cases with subjects, splits and attributes, the label schema, the contents.

    Its name, its description and where it lies are left out.
    """
    said = {key: value for key, value in manifest.to_mapping().items() if key not in {"name", "description"}}
    return hashlib.sha256(json.dumps([said, contents], sort_keys=True).encode()).hexdigest()


def refuse_shared(manifest: Manifest, contents: Contents) -> None:
    """Refuse a cohort in which an image file of one split is, byte for byte, one of another split.

    Raises:
        UserError: names both cases.
    """
    owners: dict[str, Case] = {}
    for case in manifest.cases:
        for digest in contents.get(case.name, [])[: len(case.images)]:
            other = owners.setdefault(digest, case)
            if other.split != case.split:
                raise _leak(other, other.split, case, case.split)


def refuse_copies(cases: Mapping[str, Iterable[ModelCase]]) -> None:
    """Refuse scans of different splits that are voxel by voxel the same in model space, however they are stored.

    Args:
        cases: by split; scans of one value throughout are not compared.

    Raises:
        UserError: names both cases.
    """
    owners: dict[str, tuple[Case, str]] = {}
    for split, members in cases.items():
        for member in members:
            if member.content and np.ptp(member.image):
                other, its = owners.setdefault(member.content, (member.case, split))
                if its != split:
                    raise _leak(other, its, member.case, split)


def _leak(one: Case, split: str, other: Case, its: str) -> UserError:
    return UserError(
        f"leak: {other.name} ({its}) holds the scan of {one.name} ({split})",
        "leave one of them out, or give both the same subject, and split again",
    )
