"""Digests of a cohort's files: they find equal scans whatever the files are called."""

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

_WORDS = {"name", "description", "licence"}  # fields of a manifest that no result depends on


def case_contents(manifest: Manifest, cases: Iterable[Case], cache: Path) -> dict[str, list[str]]:
    """Case name to the digests of its files, see `content_digests`; unchanged files are read only once.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    files = {case.name: manifest.files(case) for case in cases}
    digests = content_digests((path for paths in files.values() for path in paths), cache)
    return {name: [digests[path] for path in paths] for name, paths in files.items()}


def cohort_digest(manifest: Manifest, contents: Contents) -> str:
    """SHA-256 of a cohort: its cases with subjects, splits and attributes, the label schema and the files' contents.

    Name, description, licence and location do not count.
    """
    values = {key: value for key, value in manifest.to_mapping().items() if key not in _WORDS}
    return hashlib.sha256(json.dumps([values, contents], sort_keys=True).encode()).hexdigest()


def refuse_shared(manifest: Manifest, contents: Contents) -> None:
    """Refuse a cohort in which two splits contain the same image file, byte for byte.

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
    """Refuse scans of different splits that are identical in model space, voxel by voxel, however they are stored.

    Args:
        cases: cases by split; constant scans are not compared.

    Raises:
        UserError: names both cases.
    """
    owners: dict[str, tuple[Case, str]] = {}
    for split, members in cases.items():
        for member in members:
            if member.content and np.ptp(member.image):
                other, other_split = owners.setdefault(member.content, (member.case, split))
                if other_split != split:
                    raise _leak(other, other_split, member.case, split)


def _leak(first: Case, first_split: str, second: Case, second_split: str) -> UserError:
    return UserError(
        f"leak: {second.name} ({second_split}) holds the scan of {first.name} ({first_split})",
        "leave one of them out, or give both the same subject, and split again",
    )
