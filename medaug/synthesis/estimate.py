"""Estimates the disk and the time that pairs need before they are made."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from medaug.diffusion.windows import divided
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.volume import shape_text
from medaug.options import GenerateOptions
from medaug.processes import process_count
from medaug.progress import duration
from medaug.synthesis.boxes import HostBox
from medaug.synthesis.generation import on_host_grid, sample_images
from medaug.synthesis.recipes import Recipes, recipe_sampling
from medaug.training.checkpoint import Card
from medaug.training.model import DiffusionModel

SIZED = 3
"""Number of hosts whose files are measured."""
TIMED_STEPS = 2
"""Number of sampler steps that are timed."""
STATE_COPIES = 11
"""Most float32 copies of a volume that guided sampling by windows needs in main memory (benchmarks/windows.py)."""


@dataclass(frozen=True)
class Estimate:
    """The disk space and the time that pairs need.

    Attributes:
        missing: number of pairs that are still to be made.
        pair_bytes: size of the files of a pair.
        pair_seconds: time that a process needs for a pair; None if too few are missing to be worth a measurement.
        processes: number of processes that share the work.
        windows: in words, how a model of patches samples a volume; "" for a model of whole volumes.
        uncounted: names of what takes time or disk space but is not included.
    """

    missing: int
    pair_bytes: float
    pair_seconds: float | None
    processes: int
    uncounted: tuple[str, ...]
    windows: str = ""

    @property
    def bytes(self) -> float:
        """Size of the files of all missing pairs."""
        return self.missing * self.pair_bytes

    @property
    def seconds(self) -> float | None:
        """Time until all missing pairs are made."""
        return None if self.pair_seconds is None else self.missing * self.pair_seconds / self.processes

    def lines(self, num: int, folder: Path) -> list[str]:
        """The estimate as text, one string per line.

        Args:
            num: number of pairs of the run.
            folder: folder of the run.
        """
        left_out = f" (not counted: {', '.join(self.uncounted)})" if self.uncounted else ""
        found = [
            f"to make: {self.missing} of {num} pairs",
            f"estimated disk: {_size(self.bytes)}, {_size(self.pair_bytes)} a pair; {_size(_free(folder))} are free",
        ]
        if self.windows:
            found.append(self.windows)
        if self.seconds is not None:
            shared = f" in each of {self.processes} processes" if self.processes > 1 else ""
            found.append(
                f"estimated time: {duration(self.seconds)}, {self.pair_seconds:.3g} s a pair{shared}{left_out}"
            )
        return found

    def refuse_full_disk(self, folder: Path) -> None:
        """Refuse to begin if the files of the pairs do not fit on the disk.

        Raises:
            UserError: they do not fit; names the folder and both sizes.
        """
        if self.bytes > (free := _free(folder)):
            raise UserError(
                f"the {self.missing} pairs need about {_size(self.bytes)}, and the disk has {_size(free)} free",
                "free some space, lower num, or choose runs=DIR on another disk",
                path=folder,
            )


def estimate_pairs(
    model: DiffusionModel, card: Card, recipes: Recipes, missing: int, options: GenerateOptions, screened: bool
) -> Estimate:
    """Measure the size of a few hosts' files and the time of a short sampling.

    Pairs are as large as their hosts, so a host's scan and mask are compressed as a pair would be. The run is not
    affected, because every pair has random generators of its own.

    Args:
        model, card: model and card of the checkpoint.
        recipes: recipes of the run.
        missing: number of pairs that are still to be made.
        options: this function reads `batch_size`, `mode`, `resample` and `dry_run`.
        screened: whether the pairs are screened.

    Raises:
        UserError: the options do not fit the model.
    """
    worth_timing = missing > 2 * options.batch_size or (options.dry_run and missing)
    batch = min(options.batch_size, missing)
    repeats = 1 if options.mode == "pairs" else options.resample  # how often each step is done
    return Estimate(
        missing=missing,
        pair_bytes=_pair_bytes(card, recipes),
        pair_seconds=repeats * _pair_seconds(model, card, recipes, batch) if worth_timing else None,
        processes=process_count(),
        uncounted=("the screening segmenter", "rejected pairs") if screened else (),
        windows=_windows(model, card, recipes, batch),
    )


def _windows(model: DiffusionModel, card: Card, recipes: Recipes, batch: int) -> str:
    """How volumes are sampled by windows, and the memory that this takes in a window and for the whole volume."""
    if model.patch is None or not batch:
        return ""
    shape, stride = card.preprocessing.shape, model.codec.stride
    windows = recipe_sampling(recipes(0)[0]).windows(divided(shape, stride), divided(model.patch, stride))
    voxels = 4 * model.task.num_targets * batch  # bytes of each voxel of a batch
    passes = 1 if recipes.generate.guidance_scale == 1 else 2
    window, volume = passes * voxels * math.prod(model.patch), STATE_COPIES * voxels * math.prod(shape)
    return (
        f"by windows: {len(windows)} of {shape_text(model.patch)} cover {shape_text(shape)}, so the network gets "
        f"{_size(window)} at a time; the state of the volumes takes up to {_size(volume)} of main memory"
    )


def _pair_bytes(card: Card, recipes: Recipes) -> float:
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for host in islice(recipes.hosts, SIZED):
            if isinstance(host, HostBox) and recipes.boxes is not None:
                image, indices = recipes.boxes.whole(host.case)
                volumes, label = image.array.astype(image.dtype), indices
            else:
                volumes, label = on_host_grid(card, host, np.array(host.label), np.array(host.image))
            for number, volume in enumerate((*volumes, label)):
                write_volume(Path(folder, f"{number}.nii.gz"), volume, host.affine)
            sizes.append(sum(path.stat().st_size for path in Path(folder).iterdir()))
    return float(np.mean(sizes))


def _pair_seconds(model: DiffusionModel, card: Card, recipes: Recipes, batch: int) -> float:
    """Seconds per pair, extrapolated from a sampling of a few steps after a warm-up."""
    made, hosts, masks = zip(*(recipes(index) for index in range(batch)), strict=True)
    seconds = 0.0
    for steps in (1, TIMED_STEPS):
        short = [replace(recipe, num_inference_steps=steps) for recipe in made]
        begun = time.perf_counter()
        sample_images(model, card.schema, short, masks, made[0].guidance_scale, hosts=hosts)
        seconds = time.perf_counter() - begun
    return seconds / TIMED_STEPS * made[0].num_inference_steps / batch


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder; the folder need not exist."""
    while not folder.exists():
        folder = folder.resolve().parent
    return shutil.disk_usage(folder).free


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"
