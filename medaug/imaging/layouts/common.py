"""What all layouts share: the result, the files below a folder, and how names become cases and persons."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging.preflight.findings import Finding
from medaug.imaging.reading import SUFFIXES
from medaug.imaging.rules import Rules

# BraTS-GLI-00005-100 and BraTS-GLI-00005-101 are two time points of one person.
_BRATS_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+")


@dataclass(frozen=True)
class Layout:
    """A folder as its layout reads it.

    Attributes:
        name: the layout, never "auto".
        manifest: the cases that could be built, all in the split "train"; empty where none could.
        proposed: the meaning of the label values follows from file names alone, so that a user has to confirm it;
            False where the cohort's own file or the user declares it.
        problems: what is wrong with the folder, in one pass; an error there left a file or a case out.
    """

    name: str
    manifest: Manifest
    proposed: bool
    problems: tuple[Finding, ...] = ()

    def sound(self) -> Manifest:
        """Return the manifest.

        Raises:
            UserError: the first error among `problems`, with the number of the others.
        """
        errors = [finding for finding in self.problems if finding.severity == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more errors, which medaug.ingest lists)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0].what}; {errors[0].remedy}{more}")
        return self.manifest


def image_files(root: Path) -> list[str]:
    """Files of a known format below `root` as sorted paths relative to it.

    Hidden files and folders are passed over, macOS left-overs ("._x") among them; links are followed, once.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions")

    found = []
    visited = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.endswith(SUFFIXES):
                path = Path(folder, name).relative_to(root).as_posix()
                if not path.isprintable():
                    raise UserError(f"{path!a}: the name is not UTF-8 text on one line; rename the file")
                found.append(path)
    return sorted(found)


def stem(file: str) -> str:
    """Return a file's name without folder and without the suffix of its format."""
    name = PurePosixPath(file).name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def person_of(case: str) -> str:
    """Return the person behind a case: the case itself, unless its name ends in a BraTS time point."""
    found = _BRATS_TIME_POINT.fullmatch(case)
    return found[1] if found else case


def schema_for(rules: Rules, declared: Mapping[str, Any], source: str) -> LabelSchema:
    """The schema that a layout found, overridden by what the rules say.

    Rules with `labels` replace it whole, for its regions speak of other values; rules without replace single keys.

    Args:
        rules: the user's rules.
        declared: `labels`, `regions`, `ignore`, `remap` as the layout has them.
        source: where the layout has them from, for messages.

    Raises:
        UserError: as `LabelSchema.from_mapping`.
    """
    if "labels" in rules.schema:
        return LabelSchema.from_mapping(rules.schema, rules.source)
    return LabelSchema.from_mapping({**declared, **rules.schema}, rules.source if rules.schema else source)
