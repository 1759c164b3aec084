"""Finds the cohort that the `data` options name: a manifest with splits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medaug.cohort.folds import hide_labels, hold_out_fold
from medaug.cohort.manifest import Manifest
from medaug.cohort.splits import Strata, assign_splits, subject_of
from medaug.cohort.tables import read_splits, read_subjects
from medaug.data.attributes import check_attributes
from medaug.data.quantiles import find_quantiles, is_quantile
from medaug.data.volumes import split_by_volume, subject_volumes
from medaug.errors import UserError
from medaug.layouts import read_layout
from medaug.options import DataOptions, IngestOptions
from medaug.paths import manifests_dir
from medaug.phantoms.head import write_cohort

log = logging.getLogger(__name__)


def find_cohort(options: DataOptions, phantom_folder: Path) -> Manifest:
    """Find the cohort that `data` names and split it by subject; with `labelled`, hide the other labels.

    Args:
        options: name a manifest (its splits are kept unless folds or ranges of volumes are requested), a folder in a
            known layout, or phantoms.
        phantom_folder: phantoms are written below it.

    Raises:
        UserError: the data are missing (the message says where to get them) or faulty.
    """
    manifest = _split_manifest(options, phantom_folder)
    cases = manifest.cases
    if options.test_volumes is not None:
        cases = split_by_volume(cases, subject_volumes(manifest), options.train_volumes, options.test_volumes)
    if options.folds is not None:
        cases = hold_out_fold(cases, options.folds, options.fold, options.split_seed)
    if options.labelled is not None:
        cases = hide_labels(cases, options.labelled, options.labelled_seed)
    return replace(manifest, cases=cases)


def _split_manifest(options: DataOptions, phantom_folder: Path) -> Manifest:
    if options.layout == "phantom":
        side, num, seed = options.phantom_side, options.phantom_subjects, options.phantom_seed
        folder = phantom_folder / f"side_{side}_seed_{seed}_subjects_{num}"
        write_cohort(folder, num, (side, side, side), seed)
        phantoms = name_subjects(read_layout(folder, "brats2020").valid_manifest(), options)
        return replace(split_cohort(phantoms, options), name="phantom", phantom=True)
    if options.manifest is None:
        if options.layout in {"pairs", "dicom"}:
            raise UserError(
                f"data.layout={options.layout}: such a folder needs rules",
                "run medaug.ingest, and train on what it writes: data.manifest=FILE.json",
            )
        layout = read_layout(find_root(options), options.layout)
        if layout.proposed:
            labels = ", ".join(f"{value} {name}" for value, name in layout.manifest.schema.labels)
            log.info("layout %s: labels are assumed to be %s; to change them use medaug.ingest", layout.name, labels)
        return split_cohort(name_subjects(layout.valid_manifest(), options), options)
    return _stored_manifest(options, options.manifest)


def require_data(options: DataOptions) -> None:
    """Check that the files that `data` names can exist, before anything is written.

    Raises:
        UserError: as for `find_root`, `find_quantiles` and `check_attributes`, or the manifest cannot be read.
    """
    if options.manifest is not None:
        manifest = _stored_manifest(options, options.manifest)
        find_quantiles(options.attributes, manifest.schema, manifest.modalities)
        names = [name for name in options.attributes if not is_quantile(name)]
        check_attributes(names, [case for case in manifest.cases if case.split != "test"])
    elif options.layout != "phantom":
        find_root(options)


def _stored_manifest(options: DataOptions, name: str) -> Manifest:
    """Load a manifest by its name in data_manifests (its files lie below `roots`) or by its path (it has a root)."""
    named = manifests_dir() / name
    if named.is_file():
        return Manifest.load(named, find_root(options) if options.roots else None)
    manifest = Manifest.load(name)
    return manifest if Path(manifest.root).is_dir() or not options.roots else Manifest.load(name, find_root(options))


def find_root(options: DataOptions) -> Path:
    """The first existing folder of `roots`.

    Raises:
        UserError: none exists; the message says where to get the data, where to put them, and how to run without them.
    """
    for root in options.roots:
        if Path(root).is_dir():
            return Path(root)
    if not options.roots:
        raise UserError(
            "data: no scans are named",
            "give data.manifest=FILE.json (made by medaug.ingest) or data.roots=[DIR], or run"
            " on phantoms: data=phantom (make: DATA=phantom)",
        )
    get = f" Get them: {options.source.rstrip('.')}." if options.source else ""
    raise UserError(
        f"data={options.name}: the scans are missing, there is no folder {' or '.join(options.roots)}.{get}"
        " Or run the same experiment on phantoms: data=phantom (make: DATA=phantom)"
    )


def name_subjects(manifest: Manifest, options: DataOptions | IngestOptions) -> Manifest:
    """Name the subjects by the pattern or table in the options; without either they stay as they are.

    Raises:
        UserError: as for `subject_of` and `read_subjects`; or both a pattern and a table are given.
    """
    pattern = options.subject_pattern
    table = options.subjects if isinstance(options, IngestOptions) else None
    if table is not None and pattern is not None:
        raise UserError("subjects and subject_pattern both name the subjects", "give one of them")
    if table is not None:
        return replace(manifest, cases=read_subjects(Path(table), manifest.cases))
    if pattern is None:
        return manifest
    return replace(
        manifest,
        cases=tuple(
            replace(c, subject=subject_of(c.name, pattern, options.subject_consecutive)) for c in manifest.cases
        ),
    )


def split_cohort(manifest: Manifest, options: DataOptions | IngestOptions, strata: Strata | None = None) -> Manifest:
    """Split a cohort by subject: from the user's file, or at random.

    Args:
        manifest: the cohort with its subjects named; its own splits are ignored.
        options: fractions and seed; `IngestOptions` may also name a file with splits.
        strata: see `medaug.cohort.splits.ranked_strata`.

    Raises:
        UserError: as for `read_splits` and `assign_splits`.
    """
    if isinstance(options, IngestOptions) and options.splits is not None:
        if options.splits_fold and not options.splits.endswith(".json"):
            raise UserError(
                f"splits_fold={options.splits_fold}: {options.splits} has no folds, only splits_final.json has",
                "leave it out",
            )
        return replace(manifest, cases=read_splits(Path(options.splits), manifest.cases, options.splits_fold))
    cases = assign_splits(manifest.cases, options.val_fraction, options.test_fraction, options.split_seed, strata)
    return replace(manifest, cases=cases)
