"""Options of the training: size, budget, hardware, and how it starts and stops."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.declaration import (
    Range,
    above,
    at_least,
    between,
    one_of,
    only_with,
    option,
    path_option,
)

_SCORED = (only_with("trainer.score_every"),)
_SHARE = between(0, 1)


@dataclass
class TrainerOptions:
    """Size and budget of the training, and the hardware it runs on."""

    max_steps: int = option("optimisation steps", 4000, limits=at_least(1))
    batch_size: int = option("volumes per device in each pass through the network", 4, limits=at_least(1))
    accumulate: int = option(
        "passes per step, whose gradients are averaged; a larger batch in the same memory", 1, limits=at_least(1)
    )
    learning_rate: float = option("peak learning rate of AdamW", 8e-4, limits=above(0))
    weight_decay: float = option("weight decay of AdamW", 0.01, limits=at_least(0))
    schedule: str = option(
        "learning rate after the warm-up: cosine decay to a tenth, or constant",
        "cosine",
        choices=one_of("cosine", "constant"),
    )
    warmup_steps: int = option("steps of linear warm-up", 100, limits=at_least(0))
    gradient_clip: float = option("maximum gradient norm", 1.0, limits=above(0))
    ema_sigma_rel: float = option(
        "width of the moving average of the weights, as a share of the training", 0.1, limits=between(0.01, 0.28)
    )
    condition_dropout: float = option(
        "share of masks (in a task without masks: images) that are hidden, to train the null condition",
        0.1,
        limits=_SHARE,
    )
    class_dropout: float = option(
        "probability, for each class, that it is hidden in a mask",
        0.0,
        limits=_SHARE,
        applies_when=(only_with("task.mask"),),
    )
    image_dropout: float = option("probability, for each image of the condition, that it is hidden", 0.0, limits=_SHARE)
    labelled_share: float | None = option(
        "share of each batch that has labels; null: as in the cohort",
        None,
        limits=Range(above=0, most=1),
    )
    pseudo_labels: bool = option(
        "train on scans without a label with the soft labels of teachers as their masks, marked as such",
        False,
        applies_when=(only_with("task.mask"), only_with("data.unlabelled")),
        identity=None,
    )
    attribute_dropout: float = option(
        "probability, for each attribute, that it is hidden",
        0.1,
        limits=_SHARE,
        applies_when=(only_with("data.attributes"),),
    )
    region_weight: float = option(
        "weight of a foreground voxel in the loss; a background voxel has weight 1", 1.0, limits=above(0)
    )
    augment: bool = option("small random rotation, scaling and shift of image and mask together", True)
    checkpoint_every: int = option("steps between checkpoints", 200, limits=at_least(1), identity=False)
    validate_every: int = option("steps between validation loss and sample pictures", 500, limits=at_least(1))
    accelerator: str = option(
        "auto: a GPU if there is one", "auto", choices=one_of("auto", "cpu", "gpu"), identity=False
    )
    devices: int = option("devices per node; -1: all", 1, limits=at_least(-1))
    num_nodes: int = option("nodes", 1, limits=at_least(1))
    strategy: str = option(
        "strategy for several devices; fsdp splits the weights between them",
        "auto",
        choices=one_of("auto", "ddp", "fsdp"),
    )
    precision: str = option(
        "precision of the network; auto: bf16 if the hardware supports it; fp16: CUDA only",
        "auto",
        choices=one_of("auto", "bf16", "fp16", "fp32"),
    )
    compile: str = option(
        "torch.compile the network; auto: on CUDA", "auto", choices=one_of("auto", "true", "false"), identity=False
    )
    num_workers: int = option("processes that load data", 1, limits=at_least(0), identity=False)
    seed: int = option("seed of weights, data order, augmentation, times and noise", 0)
    score_every: int = option(
        "steps between scorings of samples, which select best.ckpt (mask-to-image models only); 0: never",
        0,
        limits=at_least(0),
    )
    score_num: int = option("number of scored samples", 16, limits=at_least(2), applies_when=_SCORED)
    score_inference_steps: int = option(
        "sampler steps (dpmpp_2m) of scored samples", 12, limits=at_least(1), applies_when=_SCORED
    )
    score_guidance_scale: float = option(
        "guidance scale of scored samples", 2.0, limits=at_least(0), applies_when=_SCORED
    )
    selector_steps: int = option(
        "optimisation steps of the segmenter that scores samples and is used for nothing else",
        600,
        limits=at_least(1),
        applies_when=_SCORED,
    )
    selector_backend: str = option(
        "backend that trains that segmenter",
        "unet",
        choices=one_of(table="backends"),
        applies_when=_SCORED,
        identity=None,
    )


@dataclass
class LoggerOptions:
    """Where training curves go."""

    name: str = option(
        "where to log; a logger that is not installed needs the extra of its name",
        "tensorboard",
        choices=one_of(table="loggers"),
    )


@dataclass
class TrainOptions:
    """How a training starts and stops."""

    resume: bool = option("train a run for more steps than first planned; also raise trainer.max_steps", False)
    init_from: str | None = path_option("checkpoint of an earlier training whose weights this one starts from")
    dry_run: bool = option("print the plan, with time and memory, and stop", False)
    objective: str = option(
        "for --multirun with optuna: the value in finished.json to optimise", "validation_loss", identity=False
    )
