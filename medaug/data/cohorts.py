"""From the options' `data` node to a manifest with splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medaug.cohort.manifest import Manifest
from medaug.cohort.splits import assign_splits, subject_of
from medaug.config import manifests_dir
from medaug.errors import UserError
from medaug.imaging.layouts import read_layout
from medaug.imaging.phantom import write_cohort
from medaug.options import DataOptions, IngestOptions


def find_cohort(options: DataOptions, phantom_folder: Path) -> Manifest:
    """The cohort that `data` names, its files where they are, split by subject.

    Args:
        options: a committed manifest (whose splits are kept), a folder in a known layout, or phantoms.
        phantom_folder: below it phantoms are made, if it is phantoms.

    Raises:
        UserError: the data are missing (with where to get them), or something is wrong with them.
    """
    if options.layout == "phantom":
        side, num, seed = options.phantom_side, options.phantom_subjects, options.phantom_seed
        folder = phantom_folder / f"side_{side}_seed_{seed}_subjects_{num}"
        write_cohort(folder, num, (side, side, side), seed)
        return replace(split_cohort(read_layout(folder, "brats2020"), options), name="phantom", phantom=True)
    if options.manifest is None:
        return split_cohort(read_layout(find_root(options), options.layout), options)
    named = manifests_dir() / options.manifest
    return Manifest.load(named if named.is_file() else options.manifest, find_root(options) if options.roots else None)


def find_root(options: DataOptions) -> Path:
    """The first of the cohort's folders that exists.

    Raises:
        UserError: none does; the line says where to get the data, where to put them, and how to do without.
    """
    for root in options.roots:
        if Path(root).is_dir():
            return Path(root)
    raise UserError(
        f"data={options.name}: the scans are missing, there is no folder {' or '.join(options.roots)}. "
        f"Get them: {options.source}. Or run the same experiment on phantoms: data=phantom (make: DATA=phantom)"
    )


def split_cohort(manifest: Manifest, options: DataOptions | IngestOptions) -> Manifest:
    """Name the subjects by the options' rule (where they have one) and split by subject."""
    cases = manifest.cases
    if options.subject_pattern is not None:
        pattern = options.subject_pattern
        cases = tuple(replace(c, subject=subject_of(c.name, pattern, options.subject_consecutive)) for c in cases)
    cases = assign_splits(cases, options.val_fraction, options.test_fraction, options.split_seed)
    return replace(manifest, cases=cases)
