"""From the options' `data` node to a manifest with splits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medaug.cohort.folds import hide_labels, hold_out_fold
from medaug.cohort.manifest import Manifest
from medaug.cohort.splits import Strata, assign_splits, subject_of
from medaug.cohort.tables import read_splits, read_subjects
from medaug.data.attributes import check_attributes
from medaug.errors import UserError
from medaug.layouts import read_layout
from medaug.options import DataOptions, IngestOptions
from medaug.paths import manifests_dir
from medaug.phantoms.head import write_cohort

log = logging.getLogger(__name__)


def find_cohort(options: DataOptions, phantom_folder: Path) -> Manifest:
    """The cohort that `data` names, its files where they are, split by subject, with the labels that may be seen.

    Args:
        options: a committed manifest (whose splits are kept, unless folds are asked for), a folder in a known
            layout, or phantoms.
        phantom_folder: below it phantoms are made, if it is phantoms.

    Raises:
        UserError: the data are missing (with where to get them), or something is wrong with them.
    """
    manifest = _split_manifest(options, phantom_folder)
    cases = manifest.cases
    if options.folds is not None:
        cases = hold_out_fold(cases, options.folds, options.fold, options.split_seed)
    elif options.fold != 0:
        raise UserError(f"data.fold={options.fold}: there are no folds", "set data.folds, or leave data.fold out")
    if options.labelled is not None:
        cases = hide_labels(cases, options.labelled, options.labelled_seed)
    return replace(manifest, cases=cases)


def _split_manifest(options: DataOptions, phantom_folder: Path) -> Manifest:
    if options.layout == "phantom":
        side, num, seed = options.phantom_side, options.phantom_subjects, options.phantom_seed
        folder = phantom_folder / f"side_{side}_seed_{seed}_subjects_{num}"
        write_cohort(folder, num, (side, side, side), seed)
        phantoms = name_subjects(read_layout(folder, "brats2020").sound(), options)
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
            log.info("layout %s: labels are taken to be %s; to say otherwise use medaug.ingest", layout.name, labels)
        return split_cohort(name_subjects(layout.sound(), options), options)
    return _stored_manifest(options, options.manifest)


def require_data(options: DataOptions) -> None:
    """Look whether the files that `data` names can be there at all, before anything is written for their sake.

    Raises:
        UserError: as `find_root` and `check_attributes`, or the manifest cannot be read.
    """
    if options.manifest is not None:
        cases = _stored_manifest(options, options.manifest).cases
        check_attributes(options.attributes, [case for case in cases if case.split != "test"])
    elif options.layout != "phantom":
        find_root(options)


def _stored_manifest(options: DataOptions, name: str) -> Manifest:
    """A manifest by its name in data_manifests, its files where `roots` say, or by path, with a root of its own."""
    named = manifests_dir() / name
    if named.is_file():
        return Manifest.load(named, find_root(options) if options.roots else None)
    manifest = Manifest.load(name)
    return manifest if Path(manifest.root).is_dir() or not options.roots else Manifest.load(name, find_root(options))


def find_root(options: DataOptions) -> Path:
    """The first of the cohort's folders that exists.

    Raises:
        UserError: none does; the line says where to get the data, where to put them, and how to do without.
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
    """Name the subjects by the options' rule or table; without one they stay as they are.

    Raises:
        UserError: as `subject_of` and `read_subjects`, or there are both a rule and a table, or half of a rule.
    """
    pattern = options.subject_pattern
    table = options.subjects if isinstance(options, IngestOptions) else None
    if table is not None and pattern is not None:
        raise UserError("subjects and subject_pattern both name the subjects", "give one of them")
    if table is not None:
        return replace(manifest, cases=read_subjects(Path(table), manifest.cases))
    consecutive = options.subject_consecutive
    if pattern is None and consecutive != 1:
        raise UserError(
            f"subject_consecutive={consecutive}: of which numbers is not said", "give subject_pattern='(\\d+)$' as well"
        )
    if pattern is None:
        return manifest
    return replace(
        manifest,
        cases=tuple(replace(c, subject=subject_of(c.name, pattern, consecutive)) for c in manifest.cases),
    )


def split_cohort(manifest: Manifest, options: DataOptions | IngestOptions, strata: Strata | None = None) -> Manifest:
    """Split by subject, as a file that the user brings says or by a draw.

    Args:
        manifest: the cohort, its subjects named; its own splits are not looked at.
        options: fractions and seed; `IngestOptions` may also bring splits along in a file.
        strata: see `medaug.cohort.splits.ranked_strata`.

    Raises:
        UserError: as `read_splits` and `assign_splits`.
    """
    if isinstance(options, IngestOptions) and options.splits is not None:
        if options.splits_fold and not options.splits.endswith(".json"):
            raise UserError(
                f"splits_fold={options.splits_fold}: {options.splits} has no folds, only splits_final.json has",
                "leave it out",
            )
        return replace(manifest, cases=read_splits(Path(options.splits), manifest.cases, options.splits_fold))
    drawn = assign_splits(manifest.cases, options.val_fraction, options.test_fraction, options.split_seed, strata)
    return replace(manifest, cases=drawn)
