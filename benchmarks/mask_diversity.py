"""Volume and shape diversity of masks from each source, with the training population's beside it.

python benchmarks/mask_diversity.py [folder of Task04_Hippocampus] [--num 140] [--picture FILE.png]

Masks are made on the training hosts of the hippocampus cohort, as `generate` makes them, without images. "Dice" is the
mean over random pairs of masks whose foregrounds are brought to one centre (whole voxels): the lower, the more the
shapes differ.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.data.cases import ModelCase, load_cases, read_grids
from medaug.data.preprocessing import fit_preprocessing
from medaug.options import DataOptions, GenerateOptions, MasksOptions, SamplerOptions
from medaug.paths import manifests_dir
from medaug.synthesis.masks import TrainingMasks
from medaug.synthesis.plausible import Limits
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks

SOURCES = {
    "deformed": MasksOptions(),
    "population": MasksOptions(source="population"),
    "population, volumes [0,0.1]": MasksOptions(source="population", volume_range=[0.0, 0.1]),
    "population, volumes [0.9,1]": MasksOptions(source="population", volume_range=[0.9, 1.0]),
}


def main(root: Path, num: int, picture: Path | None) -> None:
    """Print a row per source; the first row is the population."""
    manifest = Manifest.load(manifests_dir() / "hippocampus.json", root)
    train = manifest.split("train")
    space = fit_preprocessing(read_grids(manifest, train), DataOptions(shape=[40, 56, 40]), multiple=(8, 8, 8))
    with tempfile.TemporaryDirectory() as folder:
        hosts = load_cases(manifest, train, space, Path(folder), memory=True)
        labels = [np.asarray(host.label) for host in hosts]
        limits = Limits.fit(labels)
        names = manifest.schema.foreground
        print(f"{'':30}{'masks':>6}" + "".join(f"{name + ' mean':>16}{'std':>6}{'Dice':>7}" for name in names), end="")
        print(f"{'usual topology':>16}{'rejected':>10}{'s':>7}")
        shown = {"training masks": labels}
        _row("training masks", labels, len(names), limits)
        for name, options in SOURCES.items():
            start = time.perf_counter()
            source = load_masks(options).fitted(TrainingMasks.of(hosts, Path(folder)))
            recipes = Recipes(hosts, source, GenerateOptions(), SamplerOptions(), options.source, "")
            made = [recipes(index) for index in range(num)]
            attempts = sum(recipe.attempt for recipe, _, _ in made)
            shown[name] = [mask for _, _, mask in made]
            _row(
                name, shown[name], len(names), limits, f"{attempts / (attempts + num):.0%}", time.perf_counter() - start
            )
        if picture is not None:
            _draw(shown, hosts, picture)


def _row(
    name: str, masks: list[NDArray[np.uint8]], classes: int, limits: Limits, rejected: str = "", seconds: float = 0
) -> None:
    volumes = np.array([[(mask == value + 1).sum() for value in range(classes)] for mask in masks])
    centred = [_centred(mask) for mask in masks]
    pairs = np.random.default_rng(0).integers(0, len(masks), (500, 2))
    cells = []
    for value in range(classes):
        dice = [_dice(centred[i] == value + 1, centred[j] == value + 1) for i, j in pairs if i != j]
        cells.append(f"{volumes[:, value].mean():16.0f}{volumes[:, value].std():6.0f}{np.mean(dice):7.3f}")
    usual = np.mean([getattr(limits.rejection(mask), "kind", "") != "topology" for mask in masks])
    print(f"{name:30}{len(masks):6}{''.join(cells)}{usual:16.0%}{rejected:>10}{seconds:7.0f}", flush=True)


def _centred(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shift = np.array(mask.shape) // 2 - np.argwhere(mask > 0).mean(axis=0).round().astype(int)
    return np.roll(mask, shift, (0, 1, 2))


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _draw(shown: dict[str, list[NDArray[np.uint8]]], hosts: list[ModelCase], path: Path) -> None:
    columns = 9
    figure, axes = plt.subplots(len(shown), columns, figsize=(1.25 * columns, 1.15 * len(shown)))
    for row, (name, masks) in zip(axes, shown.items(), strict=True):
        for axis, mask in zip(row, masks[:: max(1, len(masks) // columns)], strict=False):
            middle = int(np.argwhere(mask > 0).mean(axis=0).round()[0])
            axis.imshow(mask[middle].T, origin="lower", vmin=0, vmax=3, cmap="magma", interpolation="nearest")
            axis.set_axis_off()
        row[0].set_title(name, fontsize=9, loc="left")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("MEDAUG_DATA", "data")) / "Task04_Hippocampus"
    parser.add_argument("root", nargs="?", type=Path, default=default)
    parser.add_argument("--num", type=int, default=140)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    main(given.root, given.num, given.picture)
