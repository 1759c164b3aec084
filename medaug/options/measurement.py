"""Options of what is measured: segmenters, scores, audit and benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.declaration import (
    Items,
    Range,
    above,
    at_least,
    between,
    one_of,
    only_with,
    option,
    path_option,
    set_option,
)

_POSITIVE = at_least(1)


@dataclass
class SegmenterOptions:
    """The segmenter (MONAI U-Net, Dice and cross-entropy) of benchmark, audit and scoring, trained anew for each."""

    channels: list[int] = option("features per level", [16, 32, 64, 96], limits=_POSITIVE, items=Items(fewest=1))
    learning_rate: float = option("peak learning rate of AdamW, with cosine decay", 2e-3, limits=above(0))
    batch_size: int = option("volumes per step", 4, limits=_POSITIVE)
    num_workers: int = option("processes that load data", 1, limits=at_least(0), identity=False)
    nnunet: str | None = path_option(
        "Python of an environment with nnU-Net v2, for backend=nnunet; null: MEDAUG_NNUNET, or this Python",
        identity=False,
    )
    ema: float = option(
        "use a moving average of the weights with this decay per step, such as 0.99; 0: use the last weights",
        0.0,
        limits=Range(least=0, below=1),
        identity=None,
    )
    mirror: bool = option(
        "average predictions over left-right mirrored scans, unless a label names a side", False, identity=None
    )


@dataclass
class ScoringOptions:
    """How segmentations are scored against the truth."""

    tolerance: float = option(
        "distance in mm between two surfaces that counts as agreement in NSD; 1 is about one voxel of a brain scan",
        1.0,
        limits=at_least(0),
        identity=None,
    )
    lesions: list[str] = option(
        "structures that consist of separate lesions; their lesions are also counted",
        [],
        items=Items(distinct=True),
        identity=None,
    )


@dataclass
class AuditOptions:
    """How well the images match their masks, measured by a segmenter (the judge) that is used for nothing else."""

    name: str | None = set_option()
    judge_steps: int = option("optimisation steps of the judge", 1500, limits=_POSITIVE)
    backend: str = option("backend that trains the judge", "unet", choices=one_of(table="backends"), identity=None)
    guidance_scales: list[float] = option(
        "guidance scales compared on the same seeds and masks", [0.0, 1.0, 3.0], limits=at_least(0)
    )
    guidance_num: int = option("pairs per guidance scale", 16, limits=_POSITIVE)
    batch_size: int = option("pairs sampled together; does not change them", 4, limits=_POSITIVE, identity=False)
    seed: int = option("seed of the judge, the guidance sweep and the bootstrap", 0, limits=at_least(0))
    pairs: str | None = path_option(
        "manifest of external synthetic pairs to audit; null: the experiment's own pairs", identity=False
    )
    pairs_seen: str | None = path_option(
        "text file with the subjects that their generator saw, one per line; null: as their manifest declares",
        identity=False,
        applies_when=(only_with("audit.pairs"),),
    )
    cohort: str | None = path_option(
        "manifest of a real cohort with splits, if nothing was trained; null: the cohort of the training",
        identity=False,
        applies_when=(only_with("audit.pairs"),),
    )


@dataclass
class ArmsOptions:
    """What the segmenters of the benchmark train on."""

    names: list[str] = option(
        "arms to compare, each with its baseline",
        ["real", "real+classical", "real+classical+synthetic"],
        choices=one_of(table="arms"),
        items=Items(fewest=2, distinct=True),
    )
    synthetic_share: float = option(
        "share of each batch that is synthetic, in the synthetic arms", 0.5, limits=Range(above=0, below=1)
    )
    synthetic_finish: float = option(
        "share of the steps, at the end, that use no synthetic volumes, in arms that also train on real ones",
        0.0,
        limits=Range(least=0, below=1),
        identity=None,
    )


@dataclass
class PseudoOptions:
    """Labels that teachers, segmenters trained on the human labels alone, predict for training scans without labels."""

    teachers: int = option("number of teachers, whose probabilities are averaged", 2, limits=at_least(1), identity=None)
    steps: int | None = option(
        "optimisation steps of a teacher; null: benchmark.steps in `benchmark`, trainer.selector_steps in `train`",
        None,
        limits=at_least(1),
        identity=None,
    )
    rounds: int = option(
        "how many times the scans are labelled; from the second round on, teachers also train on the previous labels",
        1,
        limits=at_least(1),
        identity=None,
    )
    atlases: bool = option(
        "use the labelled scans, registered to each scan without a label, as one more teacher", False, identity=None
    )
    plausibility: bool = option(
        "give less weight to scans whose pseudo-label has an unusual shape, compared with the human labels",
        False,
        identity=None,
    )
    share: float = option(
        "share of each batch that has pseudo-labels, in the arms with self_training",
        0.5,
        limits=Range(above=0, below=1),
        identity=None,
    )
    cutmix: float = option(
        "share of the volumes with pseudo-labels of which a block comes from another such scan",
        0.0,
        limits=between(0, 1),
        identity=None,
    )
    finish: float = option(
        "share of the steps, at the end, that use human labels only, in the arms with self_training",
        0.2,
        limits=Range(least=0, below=1),
        identity=None,
    )


@dataclass
class BenchmarkOptions:
    """Whether the pairs help, measured on subjects that no model has seen."""

    name: str | None = set_option()
    steps: int = option("optimisation steps of each segmenter, the same in all arms", 600, limits=_POSITIVE)
    seeds: list[int] = option(
        "training seeds; each arm trains one segmenter per seed", [0, 1, 2], items=Items(fewest=1, distinct=True)
    )
    labelled: list[str] = option(
        "numbers of training subjects that keep their labels, as in [4,8,16,all]; each arm is trained with each number",
        ["all"],
        items=Items(fewest=1, distinct=True),
        identity=None,
    )
    draws: list[int] = option(
        "seeds for choosing those subjects; within a draw, the subjects of a smaller number are a subset of a larger's",
        [0],
        limits=at_least(0),
        items=Items(fewest=1, distinct=True),
        identity=None,
    )
    folds: int | None = option(
        "folds of a cross-validation, which scores all subjects outside the test split; null: the cohort's splits",
        None,
        limits=at_least(3),
        identity=None,
    )
    evaluate: str = option(
        "the split that is scored: test, or val to choose settings without looking at test subjects",
        "test",
        choices=one_of("test", "val"),
        identity=None,
    )
    pairs: str | None = path_option(
        "manifest of external synthetic pairs; {fold} stands for the fold's number; null: the experiment's own pairs",
        identity=False,
    )
    pairs_seen: str | None = path_option(
        "text file with the subjects that their generator saw, one per line; null: as their manifest declares",
        identity=False,
        applies_when=(only_with("benchmark.pairs"),),
    )
    cohort: str | None = path_option(
        "manifest of a cohort with splits, if nothing was trained; null: the cohort of the training", identity=False
    )
    test: str | None = path_option(
        "manifest of an external cohort whose test scans are scored as well, apart from the others; null: none",
        identity=False,
    )
    workers: int = option(
        "number of processes, or of SLURM tasks, that run jobs at the same time",
        1,
        limits=_POSITIVE,
        identity=False,
    )
    slurm: list[str] = option(
        "run the workers as SLURM tasks with these parameters of sbatch, as in [partition:gpu,timeout_min:120]",
        [],
        identity=False,
    )
    plan: bool = option("list the jobs, done or not, with the time that is left, and stop", False, identity=False)
    budget: str | None = option(
        "time that may be spent, as in 90min, 6h or 2d; plan=true then says what can be dropped to fit",
        None,
        applies_when=(only_with("benchmark.plan"),),
        identity=False,
    )
    bootstrap_seed: int = option("seed of the bootstrap intervals", 0, limits=at_least(0))
    primary: list[str] | None = option(
        "the one comparison that counts, declared before the first job: [arm,baseline,metric,structure]; null: none",
        None,
        items=Items(count=4),
        identity=False,
    )
    margin: float | None = option(
        "largest loss in the primary metric that does not matter; null: none",
        None,
        limits=above(0),
        applies_when=(only_with("benchmark.primary"),),
        identity=False,
    )
    backend: str = option("backend that trains the segmenters", "unet", choices=one_of(table="backends"), identity=None)
    confidence: bool = option(
        "give less weight to the voxels that the pairs' confidence maps doubt, if there are maps", True, identity=None
    )
    doubt_weight: float = option(
        "weight of those voxels in the segmenters' loss; 0: they are ignored, 1: as other voxels",
        0.0,
        limits=between(0, 1),
        applies_when=(only_with("benchmark.confidence"),),
        identity=None,
    )
