"""The table of segmenter backends, from which `benchmark.backend` chooses."""

from __future__ import annotations

from medaug.options import SegmenterOptions
from medaug.segmentation.protocol import Backend, Problem
from medaug.segmentation.unet import UNetSegmenter
from medaug.tables import Table


class UNetBackend:
    """MONAI's U-Net, trained in this process."""

    def make(self, problem: Problem, options: SegmenterOptions) -> UNetSegmenter:
        """An untrained U-Net for a problem."""
        return UNetSegmenter(problem, options)


UNET = UNetBackend()
BACKENDS: Table[Backend] = Table("backends", "segmenter backend", Backend, key="benchmark.backend")
