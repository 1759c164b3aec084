"""Options of the cohort: subjects, splits, and how scans are preprocessed."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.declaration import (
    Items,
    Range,
    above,
    at_least,
    between,
    not_with,
    one_of,
    only_with,
    option,
    path_option,
)

_PHANTOM = (only_with("data.layout", "phantom"),)
_TRIPLE = Items(count=3)
_INTERVAL = Items(count=2, ascending=True)


@dataclass
class SplitOptions:
    """Which scans belong to one subject, and how subjects are split: the keys that `ingest` and `data` share."""

    subject_pattern: str | None = option(
        r"regular expression; group 1 in a case's name is the subject, as in '(\d+)$'; null: one subject per case",
        None,
    )
    subject_consecutive: int = option(
        "how many consecutive numbers belong to one subject; 2: scans 2k-1 and 2k do",
        1,
        limits=at_least(1),
        applies_when=(only_with("subject_pattern"),),
    )
    val_fraction: float = option(
        "share of subjects for validation", 0.1, limits=Range(least=0, below=1), applies_when=(not_with("splits"),)
    )
    test_fraction: float = option(
        "share of subjects held out for testing; no model sees them",
        0.2,
        limits=Range(least=0, below=1),
        applies_when=(not_with("splits"),),
    )
    split_seed: int = option("seed of the split by subject, and of the folds", 0)
    folds: int | None = option(
        "number of cross-validation folds of the training and validation subjects; null: none; ingest writes them as "
        "nnU-Net's splits_final.json beside the manifest",
        None,
        limits=at_least(2),
    )


@dataclass
class DataOptions(SplitOptions):
    """The cohort, and how its scans are preprocessed."""

    name: str = option("name of the cohort", "")
    manifest: str | None = path_option(
        "manifest: a file, or a name in data_manifests; null: read the folder in roots without one"
    )
    roots: list[str] = option(
        "folders where the files may be; the first one that exists is used", [], identity=False, is_path=True
    )
    layout: str = option(
        "layout of the folder if there is no manifest; auto: detect it; phantom: make phantoms",
        "auto",
        choices=one_of("auto", "phantom", table="layouts", without=("pairs",)),
    )
    source: str = option("where to get the data; printed if they are missing", "", identity=False)
    fold: int = option(
        "number of the fold used for validation", 0, limits=at_least(0), applies_when=(only_with("data.folds"),)
    )
    labelled: int | None = option(
        "number of training subjects that keep their labels; the other labels are hidden; null: all",
        None,
        limits=at_least(1),
    )
    labelled_seed: int = option("seed for choosing those subjects", 0, applies_when=(only_with("data.labelled"),))
    train_volumes: list[float] = option(
        "subjects whose labelled volume lies between these quantiles train and validate",
        [0.0, 1.0],
        limits=between(0, 1),
        items=_INTERVAL,
        applies_when=(only_with("data.test_volumes"),),
        identity=None,
    )
    test_volumes: list[float] | None = option(
        "test on all subjects outside the validation split whose labelled volume lies between these quantiles, such as "
        "sizes that training never saw; null: on the test split",
        None,
        limits=between(0, 1),
        items=_INTERVAL,
        identity=None,
    )
    unlabelled: bool = option("also train on scans without a label, as unconditional samples", True)
    attributes: list[str] = option(
        "further conditions besides the mask: attributes of the manifest, spacing, or quantiles of intensities in a "
        "structure, as in p90/oedema/FLAIR",
        [],
        items=Items(distinct=True),
    )
    max_side: int | None = option(
        "maximum number of voxels per side; a larger grid is made coarser, isotropically; null: no maximum",
        None,
        limits=at_least(1),
    )
    spacing: list[float] | None = option(
        "voxel size in mm to resample to; null: as data.resample says", None, limits=above(0), items=_TRIPLE
    )
    resample: str = option(
        "auto: resample to one voxel size if the training scans differ", "auto", choices=one_of("auto", "never")
    )
    crop: str = option("what to crop scans to; body: the body or brain", "none", choices=one_of("none", "body"))
    shape: list[int] | None = option(
        "the model's grid in voxels; null: the smallest that contains every training scan",
        None,
        limits=at_least(1),
        items=_TRIPLE,
    )
    patch: list[int] | None = option(
        "train on patches of this many voxels and sample whole volumes by windows; null: train on whole volumes",
        None,
        limits=at_least(1),
        items=_TRIPLE,
        identity=None,
    )
    patch_foreground: float = option(
        "share of the patches that are placed around a voxel of a foreground class, every class equally often",
        0.5,
        limits=between(0, 1),
        applies_when=(only_with("data.patch"),),
        identity=None,
    )
    intensity: str = option(
        "how intensities are scaled to -1..1: percentile (MR), window (CT) or zscore",
        "percentile",
        choices=one_of("percentile", "window", "zscore"),
    )
    percentiles: list[float] = option(
        "percentiles of each volume and modality that become -1 and 1",
        [0.5, 99.5],
        limits=between(0, 100),
        items=_INTERVAL,
        applies_when=(only_with("data.intensity", "percentile"),),
    )
    window: list[float] | None = option(
        "intensities that become -1 and 1, in the scan's units, such as [-1000,1000]",
        None,
        items=_INTERVAL,
        applies_when=(only_with("data.intensity", "window"),),
    )
    zscore_clip: float = option(
        "standard deviations from the foreground's mean that become -1 and 1",
        4.0,
        limits=above(0),
        applies_when=(only_with("data.intensity", "zscore"),),
    )
    bias_correction: bool = option(
        "divide scans by N4's estimate of the bias field; multiply by it again on export", False
    )
    cache: str = option(
        "where preprocessed scans are kept: disk (memory-mapped) or ram",
        "disk",
        choices=one_of("disk", "ram"),
        identity=False,
    )
    phantom_subjects: int = option("number of phantoms to make", 24, limits=at_least(1), applies_when=_PHANTOM)
    phantom_side: int = option(
        "voxels of a phantom along each axis", 64, limits=between(32, 160), applies_when=_PHANTOM
    )
    phantom_seed: int = option("seed of the phantoms", 0, limits=at_least(0), applies_when=_PHANTOM)
