"""The schema of every option: one dataclass per Hydra group, one help line per key.

Free of torch and numpy, so that `--help` and the refusal of a misspelt key take a fraction of a second. The YAML
files under `conf/` hold choices only; what may be chosen, and of which type, stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(
    help: str,
    default: Any,
    identity: bool = True,
    *,
    is_path: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    fewest: int = 0,
    needs: str | None = None,
    unless: str | None = None,
) -> Any:
    """A dataclass field with what `medaug.keys.Key` says of a key.

    Limits stand here where the number alone decides; what depends on other keys is checked by the code that reads it.
    No number may be NaN or infinite.

    Args:
        help: the help line.
        default: value.
        identity: False: the key changes no result, only where and how fast.
        is_path: it names files or folders, in which `~` and environment variables are expanded.
        least, above, most, fewest, needs, unless: see `Key`.
    """
    metadata = {"help": help, "identity": identity, "least": least, "above": above, "most": most, "fewest": fewest}
    metadata |= {"needs": needs, "unless": unless, "is_path": is_path}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def path_option(help: str, **about: Any) -> Any:
    """A key that names a file or folder, absent by default; `about` as for `option`."""
    return option(help, None, is_path=True, **about)


@dataclass
class DataOptions:
    """The cohort, and the model space that its scans are brought into."""

    name: str = option("what the cohort is called", "")
    manifest: str | None = path_option(
        "a manifest (a file, or a name in data_manifests); null: read root by its layout"
    )
    roots: list[str] = option(
        "folders that may hold the files; the first that exists is taken", [], identity=False, is_path=True
    )
    layout: str = option("auto, msd, brats2020, brats2023, brats2024, nnunet or phantom", "auto")
    source: str = option("where to get the data, said when they are missing", "", identity=False)
    subject_pattern: str | None = option("regular expression whose group 1 in a case's name is its subject", None)
    subject_consecutive: int = option("this many consecutive numbers are one subject", 1)
    val_fraction: float = option("share of subjects for validation", 0.1)
    test_fraction: float = option("share of subjects that no model may see", 0.2)
    split_seed: int = option("seed of the split by subject, and of the folds", 0)
    folds: int | None = option("divide training and validation subjects anew into this many folds; null: do not", None)
    fold: int = option("which of the folds validates, from 0", 0)
    labelled: int | None = option(
        "training subjects that keep their labels, the others' are hidden; null: all", None, least=1
    )
    labelled_seed: int = option("seed of the choice of those subjects", 0, needs="data.labelled")
    unlabelled: bool = option("train on scans without a label too, which teach what no mask says", True)
    attributes: list[str] = option("what the model is told beside the mask: the manifest's attributes, or spacing", [])
    max_side: int | None = option("coarsen the grid isotropically until no side has more voxels; null: never", None)
    spacing: list[float] | None = option("voxel size in mm to resample to; null: as resample says", None)
    resample: str = option("auto (to one voxel size where the training scans differ) or never", "auto")
    crop: str = option("none, or body: cut off what lies outside the body or brain", "none")
    shape: list[int] | None = option(
        "the model's grid, voxels; null: the smallest that holds every training scan", None
    )
    intensity: str = option("what becomes -1 and 1: percentile (MR), window (CT) or zscore", "percentile")
    percentiles: list[float] = option("percentile: these of each volume and modality", [0.5, 99.5])
    window: list[float] | None = option("window: two values in the scan's units, such as [-1000,1000]", None)
    zscore_clip: float = option("zscore: standard deviations about the foreground's mean", 4.0)
    bias_correction: bool = option("divide by N4's estimate of the bias field first, multiply on export", False)
    cache: str = option("where scans in model space are kept: disk (memory-mapped) or ram", "disk", identity=False)
    phantom_subjects: int = option("layout phantom: how many subjects to make", 24)
    phantom_side: int = option("layout phantom: voxels along each axis", 64)
    phantom_seed: int = option("layout phantom: seed of the cohort", 0, least=0)


@dataclass
class TaskOptions:
    """What is drawn, and what it is drawn from."""

    target: str = option("what is drawn: image, or label (the label map)", "image")
    modalities: list[str] = option("target image: the modalities that are drawn; none named: all", [])
    mask: bool = option("the label map is a condition", True)
    given: list[str] = option("modalities that are a condition; [all]: those that are not drawn", [])
    degradation: str = option(
        "none, noise or low_resolution: what is drawn is also given, as a scan of so poor a quality", "none"
    )
    noise_std: float = option("degradation noise: its standard deviation, of intensities from -1 to 1", 0.25)
    factor: int = option("degradation low_resolution: voxels along each axis that become one", 2)


@dataclass
class CodecOptions:
    """The change of variables in which the diffusion runs; all but name and levels is of kl, and trains it."""

    name: str = option("identity, haar (wavelets) or kl (an autoencoder, trained before the diffusion)", "haar")
    levels: int = option("haar: levels of the transform, 1 to 3; each halves the sides", 1)
    channels: list[int] = option("kl: features per level; each level after the first halves the sides", [16, 32, 64])
    latent_channels: int = option("kl: channels of the latents", 4)
    kl_weight: float = option("kl: of the divergence from N(0, 1), per latent value, beside the absolute error", 1e-4)
    adversarial_weight: float = option("kl: of a patch discriminator, from half of the steps on; 0: none", 0.0)
    max_steps: int | None = option("kl: optimisation steps; null: half of trainer.max_steps", None)
    batch_size: int | None = option("kl: volumes per step; null: trainer.batch_size", None)
    learning_rate: float = option("kl: peak learning rate of AdamW", 1e-3)
    checkpoint: str | None = path_option("kl: codec.ckpt of an earlier training, taken instead of training one")


@dataclass
class NetworkOptions:
    """The denoising U-Net (MONAI), and how the mask enters it."""

    name: str = option(
        "unet (mask beside the image), spade (mask in the decoder), controlnet (on a frozen base)", "unet"
    )
    spatial_dims: int = option("3: volumes; 2: every axial slice by itself", 3)
    channels: list[int] = option("features per level", [32, 64, 96])
    attention: list[bool] = option("self-attention per level; the middle has it always", [False, False, True])
    num_res_blocks: int = option("residual blocks per level", 1)
    num_head_channels: int = option("features per attention head", 32)
    norm_num_groups: int = option("groups of the group normalisation", 16)
    coordinates: bool = option("voxel coordinates as inputs, for cohorts that are aligned", False)
    stem: int | None = option(
        "features of a learned stem of the mask; 0: none; null: 32 where blocks exceed 8 voxels", None
    )
    gradient_checkpointing: bool = option("compute inner activations twice and hold them less", False)


@dataclass
class ProcessOptions:
    """The forward process and what the network predicts."""

    noise_schedule: str = option("linear, cosine, rectified_flow or edm", "rectified_flow")
    prediction_type: str = option("epsilon, sample, v_prediction, flow or edm", "flow")
    num_train_timesteps: int | None = option("linear, cosine: noise levels; null: continuous time", 1000)
    time_shift: float = option("rectified_flow: above 1 spends more on noisy times, as large volumes want", 1.0)
    zero_terminal_snr: bool = option("linear, cosine: make the noisiest time pure noise, as sampling assumes", False)
    sigma_min: float = option("edm: least noise, in standard deviations of the (standardised) data", 0.002)
    sigma_max: float = option("edm: most noise, from which sampling starts", 80.0)
    sigma_data: float = option("edm: standard deviation of the data, which the codec makes 1", 1.0)
    log_sigma_mean: float = option("edm: mean of the logarithm of the noise in training", -0.5)
    log_sigma_std: float = option("edm: standard deviation of that logarithm", 1.2)
    loss_weight: str = option("of a time in the loss: uniform or min_snr (noisy times count less)", "uniform")


@dataclass
class TrainerOptions:
    """Size and budget of the training, and the hardware it runs on."""

    max_steps: int = option("optimisation steps", 4000)
    batch_size: int = option("volumes per device and pass through the network", 4)
    accumulate: int = option("passes per step, whose gradients are averaged: a larger batch in the same memory", 1)
    learning_rate: float = option("peak learning rate of AdamW", 8e-4)
    weight_decay: float = option("weight decay of AdamW", 0.01, least=0)
    schedule: str = option("of the learning rate after its warm-up: cosine (to a tenth) or constant", "cosine")
    warmup_steps: int = option("steps of linear warm-up", 100, least=0)
    gradient_clip: float = option("largest gradient norm", 1.0)
    ema_sigma_rel: float = option("width of the moving average of the weights, as a share of the training", 0.1)
    condition_dropout: float = option(
        "share of masks (of images, in a task without masks) dropped to train the null condition", 0.1
    )
    class_dropout: float = option("share of classes of a mask that are made unknown, each by itself", 0.0)
    image_dropout: float = option("share of given modalities that are made unknown, each by itself", 0.0)
    labelled_share: float | None = option(
        "share of each batch with a label, the rest without; null: as they come", None, above=0, most=1
    )
    attribute_dropout: float = option("share of each attribute hidden, so that it may be unknown", 0.1)
    region_weight: float = option(
        "how many times more than background a foreground voxel counts in the loss", 1.0, above=0
    )
    augment: bool = option("small random rotation, scaling and shift of image and mask together", True)
    checkpoint_every: int = option("steps between checkpoints", 200, identity=False)
    validate_every: int = option("steps between validation loss and sample pictures", 500)
    accelerator: str = option("auto, cpu or gpu", "auto", identity=False)
    devices: int = option("devices per node; -1: all", 1)
    num_nodes: int = option("nodes", 1)
    strategy: str = option("of several devices: auto, ddp, or fsdp (weights split over the devices)", "auto")
    precision: str = option(
        "of the network: auto (bf16 where the processor has it), bf16, fp16 (CUDA only) or fp32", "auto"
    )
    compile: str = option("torch.compile the network: auto (on CUDA), true or false", "auto", identity=False)
    num_workers: int = option("processes that load data", 1, identity=False)
    seed: int = option("seed of weights, data order, augmentation, times and noise", 0)
    score_every: int = option("mask to image: steps between scorings of samples, which choose best.ckpt; 0: none", 0)
    score_num: int = option("samples that are scored", 16)
    score_inference_steps: int = option("steps of their sampler (dpmpp_2m)", 12)
    score_guidance_scale: float = option("their guidance", 2.0)
    selector_steps: int = option("optimisation steps of the segmenter that scores them, and nothing else", 600)


@dataclass
class LoggerOptions:
    """Where training curves go."""

    name: str = option("tensorboard, csv, wandb or mlflow (the last two: extras of the same name)", "tensorboard")


@dataclass
class SamplerOptions:
    """How noise becomes an image."""

    name: str = option("dpmpp_2m, dpmpp_2m_sde, heun, ddim or ddpm", "dpmpp_2m")
    num_inference_steps: int = option("steps, each one evaluation of the denoiser (heun: two, but for the last)", 8)
    eta: float = option("ddim only: 0 deterministic, 1 as noisy as ddpm", 0.0)
    spacing: str = option("of the steps: trailing, uniform or karras (not from pure noise)", "trailing")


@dataclass
class MasksOptions:
    """Where the masks of synthetic pairs come from: training masks, as they are or deformed, or a mask generator."""

    source: str = option("real, deformed or generated", "deformed")
    checkpoint: str | None = path_option("generated: checkpoint of a training with task=mask_generator", identity=False)
    rotation: float = option("deformed: standard deviation of the angle about each axis, degrees", 6.0, least=0)
    scaling: float = option("deformed: standard deviation of the logarithm of the scale", 0.06, least=0)
    translation: float = option("deformed: standard deviation of the shift along each axis, voxels", 1.0, least=0)
    elastic: float = option("deformed: standard deviation of the smooth displacement, voxels", 1.2, least=0)
    elastic_smoothness: float = option("deformed: correlation length of that displacement, voxels", 8.0, least=0)


@dataclass
class SegmenterOptions:
    """The segmenter (MONAI U-Net, Dice and cross-entropy) of benchmark, audit and scoring, trained apart for each."""

    channels: list[int] = option("features per level", [16, 32, 64, 96], least=1, fewest=1)
    learning_rate: float = option("peak learning rate of AdamW, cosine decay", 2e-3, above=0)
    batch_size: int = option("volumes per step", 4, least=1)
    num_workers: int = option("processes that load data", 1, identity=False, least=0)


@dataclass
class GenerateOptions:
    """How many pairs, and how strongly the mask is obeyed."""

    num: int = option("image-mask pairs to write", 64)
    guidance_scale: float = option("classifier-free guidance: 0 ignores the mask, 1 is the plain conditional", 2.0)
    guidance_interval: list[float] | None = option(
        "times in [0, 1], 1 being noise, between which there is guidance; null: always", None
    )
    guidance_rescale: float = option("0 to 1: bring guided contrast back to that of the plain conditional", 0.0)
    negative_classes: list[str] = option(
        "guide away from the same mask without these classes; none: from no mask at all", []
    )
    attributes: list[str] = option("name:value, as in [site:A,grade:2], in place of the host's own", [])
    seed: int = option("root of every pair's own seed", 0)
    batch_size: int = option("pairs sampled together; changes no sample", 4, identity=False)
    strip: int = option("pictures of how the first pair comes out of the noise; 0: none", 0, identity=False)


@dataclass
class PredictOptions:
    """Which scans a trained model is applied to, and how."""

    split: str | None = option("train, val or test of the cohort it was trained on; null: val", None)
    manifest: str | None = path_option("a manifest of other scans, in place of a split")
    name: str | None = option("folder below runs/EXP/predictions; null: the split, or the manifest's file", None)
    num_samples: int | None = option("samples per scan, whose mean is the result; null: 8 of labels, 1 of images", None)
    guidance_scale: float = option("classifier-free guidance by what the model is told; 1: none", 1.0)
    degrade: bool = option("enhancement: degrade the scans first, to measure what comes back", False)
    probabilities: bool = option("segmentation: write the probability of every class too", False)
    inpaint: list[str] = option("mask to image: classes whose voxels are drawn anew in the real scan", [])
    remove: bool = option("inpaint: draw what would be there without those classes", False)
    margin: int = option("inpaint: voxels of the model's grid around the classes that are drawn anew too", 2)
    resample: int = option("inpaint: how often each step is taken, so that the seam fits; 1 is fastest", 4)
    seed: int = option("root of every scan's own seeds", 0, least=0)
    batch_size: int = option("samples drawn together; changes no sample", 4, identity=False)


@dataclass
class AuditOptions:
    """Do the images show what their masks say? Answered by a judge that has no other use."""

    judge_steps: int = option("optimisation steps of the judge", 1500, least=1)
    guidance_scales: list[float] = option("guidance scales compared on the same seeds and masks", [0.0, 1.0, 3.0])
    guidance_num: int = option("pairs per guidance scale", 16, least=1)
    batch_size: int = option("pairs sampled together; changes no sample", 4, identity=False, least=1)
    seed: int = option("seed of the judge, the sweep and the bootstrap", 0, least=0)


@dataclass
class ArmsOptions:
    """What the downstream segmenter trains on."""

    names: list[str] = option(
        "real, real+classical or real+classical+synthetic",
        ["real", "real+classical", "real+classical+synthetic"],
    )
    synthetic_share: float = option("share of each batch that is synthetic, in the synthetic arms", 0.5)


@dataclass
class BenchmarkOptions:
    """Do the pairs help on untouched patients?"""

    steps: int = option("optimisation steps of every segmenter, the same in every arm", 600, least=1)
    seeds: list[int] = option("one segmenter per arm and seed", [0, 1, 2], fewest=1)
    bootstrap_seed: int = option("seed of the intervals", 0, least=0)


@dataclass
class ExportOptions:
    """The synthetic pairs in another tool's layout."""

    format: str = option("msd or nnunet", "msd")
    manifest: str | None = path_option("a cohort's manifest to export; null: the experiment's synthetic pairs")
    out: str | None = path_option("a folder that does not exist yet")


@dataclass
class IngestOptions:
    """Files to manifest."""

    root: str | None = path_option("folder with the scans, never written to")
    out: str | None = path_option("manifest to write (.json); scans from DICOM become NIfTI in a folder beside it")
    layout: str = option("auto, msd, brats2020, brats2023, brats2024, nnunet, pairs or dicom", "auto")
    rules: str | None = path_option("YAML file: modalities, labels, which file is which (see the documentation)")
    accept_labels: bool = option("confirm the labels that the layout proposes", False)
    name: str | None = option("what the cohort is called; null: the folder's name", None)
    images: str | None = option("layout pairs: glob of the images below root", None)
    labels: str | None = option("layout pairs: glob of the labels below root", None)
    case_pattern: str | None = option("layout pairs: regular expression whose group 1 in a path is its case", None)
    classes: list[str] | None = option("layout pairs: names of label values 0, 1, 2, ..., background first", None)
    subjects: str | None = path_option("CSV file with the columns case and subject")
    subject_pattern: str | None = option("regular expression whose group 1 in a case's name is its subject", None)
    subject_consecutive: int = option("this many consecutive numbers are one subject", 1)
    attributes: str | None = path_option("CSV file with case or subject, and a column per attribute (site, grade)")
    splits: str | None = path_option("splits to keep: splits_final.json, or a CSV with case or subject, and split")
    splits_fold: int = option("which fold of splits_final.json", 0, least=0, needs="ingest.splits")
    val_fraction: float = option("share of subjects for validation", 0.1, unless="ingest.splits")
    test_fraction: float = option("share of subjects that no model may see", 0.2, unless="ingest.splits")
    split_seed: int = option("seed of the split by subject, and of the folds", 0)
    folds: int | None = option("also write that many folds as nnU-Net's splits_final.json beside the manifest", None)
    exclude: list[str] = option("cases to leave out, by name", [])
    exclude_series: list[str] = option("dicom: files to leave out by header, as in [ImageType:localizer,scout]", [])
    check: str = option("voxels (read everything), headers (large cohorts) or none", "voxels")
    report: str | None = path_option("JSON file for the findings")
    workers: int = option("processes that read; 0: one per processor", 0)
    on_gap: str = option("dicom, a slice is missing: refuse the series, or resample over the gap", "refuse")
    on_grid: str = option("modalities on different grids: refuse the case, or resample to the first (dicom)", "refuse")
    pseudonyms: bool = option("dicom: subjects by salted pseudonym; false: by PatientID", True)
    private: str | None = path_option("dicom: file of pseudonyms and salt, to be kept; null: beside out")
    withdraw: str | None = option("list everything that this subject went into, and do nothing else", None)
    download: str | None = option("fetch a Medical Segmentation Decathlon task, such as Task04_Hippocampus", None)
    to: str | None = path_option("download: folder to unpack it in", needs="ingest.download")
    mirror: str | None = option(
        "download: address of the folder with the archives; null: the task's own", None, needs="ingest.download"
    )


@dataclass
class Options:
    """Everything that can be said; each stage reads, and accepts, its own part."""

    experiment: str = option("which cohort and model (conf/experiment)", "")
    preset: str = option("size and budget (conf/preset); the experiment's own unless said, else cpu", "cpu")
    runs: str = option("folder of all results", "runs", is_path=True)
    umask: str | None = option(
        "permissions that files written do not get, octal; 077: they are yours alone", None, identity=False
    )
    overwrite: bool = option("begin again where the config differs from the run on disk", False)
    checkpoint: str = option("auto (best where samples were scored, else last), best or last", "auto")
    dry_run: bool = option("print the plan of a training, with time and memory, and stop", False)
    resume: bool = option("train a run further than it was meant to go; raise trainer.max_steps with it", False)
    init_from: str | None = path_option("checkpoint of an earlier training whose weights to begin from; null: none")
    objective: str = option("--multirun with optuna: the number in finished.json to optimise", "validation_loss")
    data: DataOptions = field(default_factory=DataOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    codec: CodecOptions = field(default_factory=CodecOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    process: ProcessOptions = field(default_factory=ProcessOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    masks: MasksOptions = field(default_factory=MasksOptions)
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    predict: PredictOptions = field(default_factory=PredictOptions)
    segmenter: SegmenterOptions = field(default_factory=SegmenterOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)
    arms: ArmsOptions = field(default_factory=ArmsOptions)
    benchmark: BenchmarkOptions = field(default_factory=BenchmarkOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    ingest: IngestOptions = field(default_factory=IngestOptions)
