"""Options of the stages around training: what is sampled, measured, exported and ingested."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.cohort import SplitOptions
from medaug.options.declaration import (
    Items,
    above,
    at_least,
    between,
    not_with,
    one_of,
    only_with,
    option,
    path_option,
)

_DEFORMED = (only_with("masks.source", "deformed", "mixed"),)
_COMPOSED = (only_with("masks.source", "composed", "mixed"),)
_MOVED = (only_with("masks.source", "deformed", "composed", "mixed"),)
_POPULATION = (only_with("masks.source", "population", "mixed"),)
_GUIDED = (not_with("generate.guidance_scale", 1.0),)
_INPAINT = (only_with("predict.inpaint"),)
_DOWNLOAD = (only_with("ingest.download"),)
_PAIRS = (only_with("ingest.layout", "auto", "pairs"),)
_DICOM = (only_with("ingest.layout", "auto", "dicom"),)
_SCREENED = (only_with("screen.rules"),)
_POSITIVE = at_least(1)


@dataclass
class SamplerOptions:
    """The sampler, which turns noise into an image."""

    name: str = option("the sampler", "dpmpp_2m", choices=one_of(table="samplers"))
    num_inference_steps: int = option(
        "steps, each one evaluation of the network (heun: two, except the last)", 8, limits=_POSITIVE
    )
    eta: float = option(
        "0: deterministic; 1: as noisy as ddpm",
        0.0,
        limits=between(0, 1),
        applies_when=(only_with("sampler.name", "ddim"),),
    )
    spacing: str = option(
        "how the steps are spaced in time; karras cannot start from pure noise",
        "trailing",
        choices=one_of(table="spacings"),
    )
    parameters: list[str] = option(
        "options of a sampler that another package adds, as in [strength:0.5]", [], identity=None
    )


@dataclass
class MasksOptions:
    """Where the masks of synthetic pairs come from: training masks, or shapes learned from them."""

    source: str = option(
        "how masks are made; mixed: by the sources in masks.mix",
        "deformed",
        choices=one_of(table="mask_sources"),
    )
    checkpoint: str | None = path_option(
        "checkpoint of a training with task=mask_generator",
        identity=False,
        applies_when=(only_with("masks.source", "generated", "mixed"),),
    )
    mix: list[str] = option(
        "sources and their weights, as in [real:0.2,deformed:0.5,population:0.3]",
        [],
        applies_when=(only_with("masks.source", "mixed"),),
        identity=None,
    )
    max_per_host: int | None = option("most pairs of one host; null: any number", None, limits=_POSITIVE, identity=None)
    max_per_mask: int | None = option(
        "most pairs with the same unchanged training mask; null: any number",
        None,
        limits=_POSITIVE,
        applies_when=(only_with("masks.source", "real", "mixed"),),
        identity=None,
    )
    rotation: float = option(
        "standard deviation of the angle about each axis, degrees", 6.0, limits=at_least(0), applies_when=_MOVED
    )
    scaling: float = option(
        "standard deviation of the logarithm of the scale", 0.06, limits=at_least(0), applies_when=_MOVED
    )
    translation: float = option(
        "standard deviation of the shift along each axis, voxels", 1.0, limits=at_least(0), applies_when=_DEFORMED
    )
    elastic: float = option(
        "standard deviation of the smooth displacement, voxels", 1.2, limits=at_least(0), applies_when=_DEFORMED
    )
    elastic_smoothness: float = option(
        "correlation length of that displacement, voxels", 8.0, limits=at_least(0), applies_when=_DEFORMED
    )
    lesions: list[str] = option(
        "classes that make up a lesion", [], items=Items(distinct=True), applies_when=_COMPOSED, identity=None
    )
    replace: bool = option(
        "remove the lesions that the host's mask has itself", True, applies_when=_COMPOSED, identity=None
    )
    spread: float = option(
        "how far shapes may deviate from the mean shape along each principal component, standard deviations",
        2.5,
        limits=above(0),
        applies_when=_POPULATION,
        identity=None,
    )
    volume_range: list[float] = option(
        "quantiles of the training masks' volumes between which volumes are drawn; [0,0.1] asks for small ones",
        [0.0, 1.0],
        limits=between(0, 1),
        items=Items(count=2, ascending=True),
        applies_when=_POPULATION,
        identity=None,
    )
    mirror: bool = option(
        "mirror half of the masks left to right; refused if a label names a side",
        False,
        applies_when=(only_with("masks.source", "deformed", "population", "composed", "mixed"),),
        identity=None,
    )


@dataclass
class GenerateOptions:
    """How many pairs, and how strongly the images follow their masks."""

    num: int = option("image-mask pairs to write", 64, limits=_POSITIVE)
    guidance_scale: float = option(
        "classifier-free guidance: 0 ignores the mask, 1 is the plain conditional model", 2.0, limits=at_least(0)
    )
    guidance_interval: list[float] | None = option(
        "apply guidance only at times in this interval, where 0 is clean and 1 is noise; null: always",
        None,
        limits=between(0, 1),
        items=Items(count=2, ascending=True),
        applies_when=_GUIDED,
    )
    guidance_rescale: float = option(
        "moves the contrast of guided images back to the plain conditional model's: 0 not at all, 1 fully",
        0.0,
        limits=between(0, 1),
    )
    negative_classes: list[str] = option(
        "guide away from the same mask without these classes; empty: plain guidance", [], applies_when=_GUIDED
    )
    attributes: list[str] = option("attributes to use instead of the host's own, as in [site:A,grade:2]", [])
    seed: int = option("root seed, from which the seed of every pair is derived", 0)
    batch_size: int = option("pairs sampled together; does not change them", 4, limits=_POSITIVE, identity=False)
    strip: int = option(
        "number of pictures that show how the first pair develops from noise; 0: none",
        0,
        limits=at_least(0),
        identity=False,
    )
    dry_run: bool = option("print how much disk and time the pairs need, and stop", False, identity=False)


@dataclass
class ScreenOptions:
    """Which synthetic pairs are kept: the rules that each must pass, fitted on real scans."""

    rules: list[str] = option(
        "rules that every pair must pass; empty: pairs are not screened",
        [],
        choices=one_of(table="screening_rules"),
        items=Items(distinct=True),
    )
    retries: int = option(
        "how many times a rejected pair is sampled again, with another seed, before it is given up",
        4,
        limits=at_least(0),
        applies_when=_SCREENED,
    )
    keep_rejected: bool = option(
        "also write the rejected pairs, to runs/EXP/synthetic/rejected", False, identity=False, applies_when=_SCREENED
    )
    dice_quantile: float = option(
        "faithfulness: the minimum Dice is this quantile of the Dice of real validation scans",
        0.1,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    intensity_quantile: float = option(
        "intensity: the maximum deviation is this quantile of the deviations of training scans",
        0.99,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    copy_quantile: float = option(
        "near_copies, duplicates: the maximum similarity is this quantile of that between real scans of two subjects",
        0.95,
        limits=between(0, 1),
        applies_when=_SCREENED,
    )
    steps: int = option("optimisation steps of the screening segmenter", 600, limits=_POSITIVE, applies_when=_SCREENED)
    ensemble: int = option(
        "screening segmenters that vote on where each mask is doubtful, for a confidence map per pair; 0: no maps",
        0,
        limits=at_least(0),
        applies_when=_SCREENED,
        identity=None,
    )


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
