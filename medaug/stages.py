"""The stages: the purpose of each, and which options it reads.

Like `medaug.options`, this module does not import torch or numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from medaug.options import Options


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: name on the command line.
        purpose: what it does, in one line.
        needs: what must exist before it runs.
        result: where its result is written.
        example: arguments of an example command.
        reads: nodes or single keys of `Options` that its command line may set, besides its own node.
        experiment_needed: whether the command line must name an experiment.
        shared: whether several processes can work on it together.
        continues: whether it works on the experiment's training; it then uses the preset of that training unless the
            command line names one.
        positional: the key that a word without `=` sets.
        only_with: nodes that it reads only if a key is set, by node.
        kept: what Ctrl-C leaves of its work, and how to go on.
    """

    name: str
    purpose: str
    needs: str
    result: str
    example: str
    reads: tuple[str, ...]
    positional: str = ""
    experiment_needed: bool = True
    shared: bool = False
    continues: bool = False
    only_with: Mapping[str, str] = field(default_factory=dict)
    kept: str = "nothing was written"

    @property
    def own(self) -> tuple[str, ...]:
        """Keys of the stage's own node, which are written without prefix on its command line (`num=200`)."""
        node = getattr(Options(), self.name, None)
        return tuple(f.name for f in fields(node)) if node is not None else ()

    def accepts(self, path: str) -> bool:
        """Whether the stage reads the key, or the whole group, at this full path."""
        node = path.split(".")[0]
        return node in self.reads or path in self.reads or node == self.name


_RUN = ("experiment", "preset", "runs", "umask")
_MODEL = ("data", "task", "codec", "network", "process", "trainer", "logger")
_SCREENED_BY = tuple(f"segmenter.{key}" for key in ("channels", "learning_rate", "batch_size", "num_workers", "ema"))
_TAUGHT_BY = ("pseudo.teachers", "pseudo.steps", "pseudo.rounds", "pseudo.atlases", "pseudo.plausibility")
_JUDGED_BY = ("intensity", "percentiles", "window", "zscore_clip", "labelled")

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "new",
            "write a commented file for an experiment of your own",
            "a manifest",
            "conf/experiment/NAME.yaml in this folder",
            "name=mri manifest=cohort.json",
            ("umask",),
            positional="name",
            experiment_needed=False,
        ),
        Stage(
            "ingest",
            "files to a checked manifest",
            "a folder of NIfTI or DICOM scans",
            "the manifest FILE.json",
            "root=DIR out=FILE.json",
            ("experiment", "runs", "umask", *(f"data.{key}" for key in _JUDGED_BY)),
            experiment_needed=False,
            kept="no manifest was written, converted scans are kept; the same command goes on",
        ),
        Stage(
            "train",
            "learn p(image | mask) from the training split",
            "the cohort's files, or data=phantom",
            "runs/EXP/train",
            "experiment=demo",
            (*_RUN, "overwrite", *_MODEL, "segmenter", "masks", *_TAUGHT_BY),
            shared=True,
            kept="the last checkpoint is kept, if there is one; the same command goes on from there",
        ),
        Stage(
            "generate",
            "write synthetic image-mask pairs",
            "train",
            "runs/EXP/synthetic",
            "experiment=demo num=16",
            (*_RUN, "overwrite", "checkpoint", "sampler", "masks", "screen", *_SCREENED_BY, "scoring.lesions"),
            shared=True,
            continues=True,
            kept="finished pairs are kept; the same command makes the others",
        ),
        Stage(
            "predict",
            "apply a model to real scans: translate, enhance, segment, inpaint",
            "train",
            "runs/EXP/predictions",
            "experiment=demo inpaint=[oedema] remove=true",
            (*_RUN, "overwrite", "checkpoint", "sampler", "scoring"),
            continues=True,
            kept="finished scans are kept; the same command makes the others",
        ),
        Stage(
            "export",
            "write the pairs, or a cohort, in another tool's format",
            "generate, or manifest=FILE.json",
            "the folder DIR",
            "experiment=demo format=nnunet out=DIR",
            _RUN,
            experiment_needed=False,
            continues=True,
        ),
        Stage(
            "bundle",
            "write the generator as a MONAI bundle, which runs without medaug",
            "train",
            "the folder DIR",
            "experiment=demo out=DIR",
            (*_RUN, "checkpoint"),
            continues=True,
        ),
        Stage(
            "gallery",
            "write pages to look at the pairs in a browser, or a blinded reading set",
            "generate",
            "the folder DIR",
            "experiment=demo out=DIR",
            _RUN,
            experiment_needed=False,
            continues=True,
        ),
        Stage(
            "audit",
            "measure how well the images match their masks",
            "generate",
            "runs/EXP/audit",
            "experiment=demo",
            (*_RUN, "overwrite", "checkpoint", "segmenter", "data"),
            continues=True,
            only_with={"data": "audit.cohort"},
            kept="the judge is kept once it is trained; the same command goes on",
        ),
        Stage(
            "benchmark",
            "measure, on subjects that no model saw, whether the pairs help",
            "generate (audit adds its figures to the report)",
            "runs/EXP/benchmark",
            "experiment=demo",
            (*_RUN, "overwrite", "checkpoint", "segmenter", "arms", "pseudo", "scoring", "data"),
            continues=True,
            only_with={"data": "benchmark.cohort"},
            kept="finished jobs are kept; the same command does the others",
        ),
        Stage(
            "status",
            "show what is finished, running, stopped and left in every experiment of a folder",
            "a folder of experiments",
            "a line per stage, with the time that is left",
            "runs=DIR",
            ("runs", "umask"),
            experiment_needed=False,
        ),
        Stage(
            "verify",
            "say whether files are synthetic, whether they are unchanged, and what made them",
            "a file or folder",
            "a line per file, and exit status 2 if one was changed",
            "path=DIR",
            ("umask",),
            positional="path",
            experiment_needed=False,
        ),
    )
}
