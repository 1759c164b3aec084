"""Options of the other stages: what is predicted, exported, ingested, shown and verified."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.cohort import SplitOptions
from medaug.options.declaration import (
    at_least,
    not_with,
    one_of,
    only_with,
    option,
    path_option,
    set_option,
)

_INPAINT = (only_with("predict.inpaint"),)
_DOWNLOAD = (only_with("ingest.download"),)
_PAIRS = (only_with("ingest.layout", "auto", "pairs"),)
_DICOM = (only_with("ingest.layout", "auto", "dicom"),)
_POSITIVE = at_least(1)


@dataclass
class PredictOptions:
    """Which scans a trained model is applied to, and how."""

    split: str | None = option(
        "split of the training cohort; null: val",
        None,
        choices=one_of("train", "val", "test"),
        applies_when=(not_with("predict.manifest"),),
    )
    manifest: str | None = path_option("manifest of other scans, instead of a split")
    name: str | None = option("folder below runs/EXP/predictions; null: the split, or the manifest's file name", None)
    num_samples: int | None = option(
        "samples per scan, which are averaged; null: 8 for labels, 1 for images", None, limits=_POSITIVE
    )
    guidance_scale: float = option("classifier-free guidance by the conditions; 1: none", 1.0, limits=at_least(0))
    degrade: bool = option("enhancement tasks: degrade the scans first, to measure how well they are restored", False)
    probabilities: bool = option("segmentation: also write the probability of every class", False)
    inpaint: list[str] = option("mask-to-image models: inpaint the voxels of these classes in the real scan", [])
    remove: bool = option("inpaint as if those classes were absent", False, applies_when=_INPAINT)
    margin: int = option(
        "voxels of the model's grid around those classes that are inpainted too",
        2,
        limits=at_least(0),
        applies_when=_INPAINT,
    )
    resample: int = option(
        "how many times each step is repeated, for a seamless transition; 1 is fastest",
        4,
        limits=_POSITIVE,
        applies_when=_INPAINT,
    )
    seed: int = option("root seed, from which the seeds of every scan are derived", 0, limits=at_least(0))
    batch_size: int = option("samples made together; does not change them", 4, limits=_POSITIVE, identity=False)


@dataclass
class ExportOptions:
    """In which format to write the synthetic pairs, or a cohort, and where."""

    name: str | None = set_option()
    format: str = option("format to write", "msd", choices=one_of(table="export_formats"))
    with_cohort: bool = option(
        "also write the real scans of the generator's cohort, with their splits",
        False,
        applies_when=(not_with("export.manifest"),),
    )
    segmentation: str = option(
        "kind of DICOM SEG; few tools read LABELMAP yet",
        "BINARY",
        choices=one_of("BINARY", "LABELMAP"),
        applies_when=(only_with("export.format", "dicom"),),
    )
    suffixes: list[str] = option(
        "BIDS: suffix of a modality that its name does not tell, as in [MRI:T1w]",
        [],
        applies_when=(only_with("export.format", "bids"),),
    )
    skull_stripped: bool = option(
        "BIDS: record in the files that the images are skull-stripped",
        False,
        applies_when=(only_with("export.format", "bids"),),
    )
    confidence: bool = option(
        "nnU-Net: give voxels that the confidence maps of pairs doubt the ignore label",
        True,
        applies_when=(only_with("export.format", "nnunet"),),
    )
    reviews: str | None = path_option(
        "file that a gallery saved; the pairs that it rejects are left out",
        applies_when=(not_with("export.manifest"),),
    )
    sign_key: str | None = path_option("private Ed25519 key (PEM) that signs the mark of every synthetic file")
    manifest: str | None = path_option("manifest of a cohort to export; null: the experiment's synthetic pairs")
    out: str | None = path_option("folder to write to; it must not exist yet")


@dataclass
class IngestOptions(SplitOptions):
    """How scans in a folder become a manifest."""

    root: str | None = path_option("folder with the scans; nothing is written to it")
    out: str | None = path_option("manifest to write (.json); scans from DICOM become NIfTI in a folder beside it")
    layout: str = option(
        "layout of the folder; auto: detect it",
        "auto",
        choices=one_of("auto", "dicom", table="layouts"),
    )
    rules: str | None = path_option("YAML file: modalities, labels, which file is which (see the documentation)")
    accept_labels: bool = option("confirm the labels that the layout proposes", False)
    name: str | None = option("name of the cohort; null: the folder's name", None)
    images: str | None = option("glob of the images below root", None, applies_when=_PAIRS)
    labels: str | None = option("glob of the labels below root", None, applies_when=_PAIRS)
    case_pattern: str | None = option(
        "regular expression matched against a file's path; group 1 is the name of the case", None, applies_when=_PAIRS
    )
    classes: list[str] | None = option(
        "names of label values 0, 1, 2, ..., background first", None, applies_when=_PAIRS
    )
    subjects: str | None = path_option("CSV file with the columns case and subject")
    attributes: str | None = path_option("CSV file: a column case or subject, and one per attribute (site, grade)")
    splits: str | None = path_option("your own splits: splits_final.json, or a CSV file: case (or subject) and split")
    splits_fold: int = option(
        "fold of splits_final.json, from 0", 0, limits=at_least(0), applies_when=(only_with("ingest.splits"),)
    )
    exclude: list[str] = option("names of cases to leave out", [])
    exclude_series: list[str] = option(
        "leave out files whose header matches, as in [ImageType:localizer,scout]", [], applies_when=_DICOM
    )
    check: str = option(
        "what to check: voxels (reads every file), headers (for large cohorts) or none",
        "voxels",
        choices=one_of("voxels", "headers", "none"),
    )
    report: str | None = path_option("JSON file to write the findings to")
    workers: int = option("processes that read files; 0: one per processor", 0, limits=at_least(0))
    on_gap: str = option(
        "if a slice is missing: refuse the series, or resample across the gap",
        "refuse",
        choices=one_of("refuse", "resample"),
        applies_when=_DICOM,
    )
    on_grid: str = option(
        "if modalities are on different grids: refuse the case, or resample to the grid of the first modality",
        "refuse",
        choices=one_of("refuse", "resample"),
        applies_when=_DICOM,
    )
    pseudonyms: bool = option("name subjects by salted pseudonyms; false: use the PatientID", True, applies_when=_DICOM)
    private: str | None = path_option("DICOM: file with the pseudonyms and the salt; keep it secret; null: beside out")
    withdraw: str | None = option("list everything that was made with this subject's data, and stop", None)
    download: str | None = option("Medical Segmentation Decathlon task to download, as in Task04_Hippocampus", None)
    to: str | None = path_option("folder to unpack the download in", applies_when=_DOWNLOAD)
    mirror: str | None = option(
        "address of a folder with the archives; null: the official one", None, applies_when=_DOWNLOAD
    )


@dataclass
class BundleOptions:
    """The generator as a MONAI bundle."""

    out: str | None = path_option("folder to write to; it must not exist yet")


@dataclass
class GalleryOptions:
    """Pages to look at the pairs in a browser, and blinded reading sets."""

    name: str | None = set_option()
    out: str | None = path_option("folder to write to; it must not exist yet")
    num: int | None = option(
        "pairs to show, or in a reading set images of each kind; null: all, in a reading set up to 20",
        None,
        limits=_POSITIVE,
    )
    blinded: bool = option("write a reading set: synthetic and real images in random order, the key beside it", False)
    seed: int = option(
        "seed of the choice and the order of a reading set",
        0,
        limits=at_least(0),
        applies_when=(only_with("gallery.blinded"),),
    )
    answers: str | None = path_option("answers that a reader saved; they are scored, and nothing is written")
    key: str | None = path_option(
        "key of the reading set, which was written beside it", applies_when=(only_with("gallery.answers"),)
    )


@dataclass
class VerifyOptions:
    """Whether files are synthetic, and whether they are unchanged since they were written."""

    path: str | None = path_option("the file or folder to look at; the word path= may be left out")
    public_key: str | None = path_option("public Ed25519 key (PEM) that every file must be signed with")
    report: str | None = path_option("JSON file to write all results to")


@dataclass
class NewOptions:
    """A file for an experiment of your own."""

    name: str | None = option("name of the experiment", None)
    manifest: str | None = path_option("manifest of its cohort, as `ingest` writes it")
