"""The schema of every option: one dataclass per Hydra group, one declaration per key.

It does not import torch or numpy, so that `--help` and the error for a misspelt key take a fraction of a second. The
YAML files under `conf/` only make choices; types, limits, defaults and help lines are declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medaug.options.cohort import DataOptions, SplitOptions
from medaug.options.declaration import one_of, option
from medaug.options.measurement import (
    ArmsOptions,
    AuditOptions,
    BenchmarkOptions,
    PseudoOptions,
    ScoringOptions,
    SegmenterOptions,
)
from medaug.options.model import CodecOptions, NetworkOptions, ProcessOptions, TaskOptions
from medaug.options.stages import (
    BundleOptions,
    ExportOptions,
    GalleryOptions,
    IngestOptions,
    NewOptions,
    PredictOptions,
    VerifyOptions,
)
from medaug.options.synthesis import GenerateOptions, MasksOptions, SamplerOptions, ScreenOptions
from medaug.options.training import LoggerOptions, TrainerOptions, TrainOptions

__all__ = [
    "ArmsOptions",
    "AuditOptions",
    "BenchmarkOptions",
    "BundleOptions",
    "CodecOptions",
    "DataOptions",
    "ExportOptions",
    "GalleryOptions",
    "GenerateOptions",
    "IngestOptions",
    "LoggerOptions",
    "MasksOptions",
    "NetworkOptions",
    "NewOptions",
    "Options",
    "PredictOptions",
    "ProcessOptions",
    "PseudoOptions",
    "SamplerOptions",
    "ScoringOptions",
    "ScreenOptions",
    "SegmenterOptions",
    "SplitOptions",
    "TaskOptions",
    "TrainOptions",
    "TrainerOptions",
    "VerifyOptions",
]


@dataclass
class Options:
    """All keys; each stage accepts only those that it reads."""

    experiment: str = option("name of the experiment, which sets cohort and model (conf/experiment)", "")
    preset: str = option(
        "size and budget (conf/preset); by default the preset that the experiment was trained with, else the "
        "experiment's own, else cpu",
        "cpu",
    )
    runs: str = option("folder of all results", "runs", is_path=True)
    umask: str | None = option(
        "octal mask of the permissions that new files do not get; 077: only you can read them", None, identity=False
    )
    overwrite: bool = option("replace a run on disk that was made with another configuration", False)
    checkpoint: str = option(
        "which checkpoint of the training to use; auto: the best if samples were scored, else the last",
        "auto",
        choices=one_of("auto", "best", "last"),
    )
    train: TrainOptions = field(default_factory=TrainOptions)
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
    screen: ScreenOptions = field(default_factory=ScreenOptions)
    predict: PredictOptions = field(default_factory=PredictOptions)
    segmenter: SegmenterOptions = field(default_factory=SegmenterOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)
    arms: ArmsOptions = field(default_factory=ArmsOptions)
    pseudo: PseudoOptions = field(default_factory=PseudoOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    benchmark: BenchmarkOptions = field(default_factory=BenchmarkOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    ingest: IngestOptions = field(default_factory=IngestOptions)
    bundle: BundleOptions = field(default_factory=BundleOptions)
    gallery: GalleryOptions = field(default_factory=GalleryOptions)
    verify: VerifyOptions = field(default_factory=VerifyOptions)
    new: NewOptions = field(default_factory=NewOptions)
