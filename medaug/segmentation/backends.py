"""The table of segmenter backends, for the benchmark, the audit's judge and the selecting segmenter of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medaug.errors import UserError
from medaug.options import SegmenterOptions
from medaug.segmentation.nets import Build, build_dynunet, build_unet
from medaug.segmentation.nnunet import NNUNetSegmenter
from medaug.segmentation.protocol import Backend, Judge, Problem, TrainingSet
from medaug.segmentation.unet import UNetSegmenter
from medaug.tables import Table


@dataclass(frozen=True)
class UNetBackend:
    """A U-Net, trained in this process.

    Attributes:
        build: function that makes the untrained network.
        fewest_levels: minimum number of levels of the network.
    """

    build: Build
    fewest_levels: int = 1

    def make(self, problem: Problem, options: SegmenterOptions) -> UNetSegmenter:
        """An untrained segmenter for a problem.

        Raises:
            UserError: the options give too few levels for this network.
        """
        if len(options.channels) < self.fewest_levels:
            raise UserError(
                f"segmenter.channels={options.channels}: this backend needs at least {self.fewest_levels} levels",
                "give the number of features of each level",
            )
        return UNetSegmenter(problem, options, self.build)


@dataclass(frozen=True)
class NNUNetBackend:
    """Makes segmenters that are trained by nnU-Net v2."""

    def make(self, problem: Problem, options: SegmenterOptions) -> NNUNetSegmenter:
        """An untrained segmenter for a problem."""
        return NNUNetSegmenter(problem, options)


UNET = UNetBackend(build_unet)
DYNUNET = UNetBackend(build_dynunet, fewest_levels=3)
NNUNET = NNUNetBackend()
BACKENDS: Table[Backend] = Table("backends", "segmenter backend", Backend, key="benchmark.backend")


def trained_judge(
    backend: str,
    problem: Problem,
    options: SegmenterOptions,
    training_set: TrainingSet,
    steps: int,
    seed: int,
    name: str,
    path: Path,
) -> Judge:
    """Load a segmenter for images in model space from a file; if there is no such file, train and save it first.

    Args:
        backend: name in `BACKENDS`.
        problem, options: what the segmenter is made for.
        training_set, steps, seed, name: see `Segmenter.fit`; not used if the file exists.
        path: file of the segmenter.

    Raises:
        UserError: segmenters of this backend cannot be a `Judge`, the training failed, or the file is damaged.
    """
    judge = BACKENDS[backend].make(problem, options)
    if not isinstance(judge, Judge):
        raise UserError(
            f"backend {backend} cannot be the {name}: its segmenters lack some of the methods segment, features, save "
            "and load",
            "choose another backend",
        )
    if not path.exists():
        judge.fit(training_set, steps, seed, name)
        judge.save(path)
    judge.load(path)
    return judge
