"""Dark rims inside the host's grid: mean intensity by depth below the border, of real scans and of pairs.

python benchmarks/rims.py NAME=RUN [NAME=RUN ...] [--split train] [--picture FILE.png]

RUN is a folder runs/EXPERIMENT whose `synthetic` holds pairs. Only hosts
smaller than the model's grid count, because only they are padded. The depth of a voxel is its distance in voxels from
the nearest face of the host's grid that borders on padding. The figure is the mean intensity of depths 0 and 1, divided
by that of depths 2 to 5; without a rim it is that of the real hosts. Intensities are those of model space, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from common import arguments, machine, save_result
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.data.cases import ModelCase, load_cases
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import read_checkpoint

DEPTHS = 12
RIM, BELOW = slice(0, 2), slice(2, 6)


def depths(case: ModelCase) -> NDArray[np.int64]:
    """The depth (X, Y, Z) of every voxel of the model's grid; DEPTHS or more: it does not count (padding included)."""
    depth = np.full(case.image.shape[1:], DEPTHS)
    for axis, (box, side) in enumerate(zip(case.field_of_view, depth.shape, strict=True)):
        positions = np.arange(side)
        for edge, distance in ((box.start > 0, positions - box.start), (box.stop < side, box.stop - 1 - positions)):
            if edge:
                depth = np.minimum(depth, distance.reshape([-1 if a == axis else 1 for a in range(3)]))
    return np.where(case.inside, depth, DEPTHS)


def profile(case: ModelCase) -> NDArray[np.float64]:
    """Mean intensity, 0 to 1, at depths 0 to DEPTHS - 1; NaN where there is no such voxel."""
    depth, image = depths(case), (np.asarray(case.image, np.float64).mean(0) + 1) / 2
    return np.array([image[depth == d].mean() if (depth == d).any() else np.nan for d in range(DEPTHS)])


def rim(profiles: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The figure of every profile."""
    rows = np.array(profiles)
    return np.nanmean(rows[:, RIM], axis=1) / np.nanmean(rows[:, BELOW], axis=1)


def measure(runs: dict[str, Path], split: str, cache: Path) -> dict[str, list[ModelCase]]:
    """The padded scans of the split ("real"), and those of every run's pairs that are padded, in model space."""
    found: dict[str, list[ModelCase]] = {}
    for name, run in runs.items():
        card, _ = read_checkpoint(run / "train" / "last.ckpt")
        cohort, pairs = Manifest.load(run / "train" / "manifest.json"), Pairs.load(run / "synthetic")
        for key, manifest, cases in (
            ("real", cohort, cohort.split(split)),
            (name, pairs.manifest, pairs.manifest.cases),
        ):
            if key not in found:
                loaded = load_cases(manifest, cases, card.preprocessing, cache)
                found[key] = [case for case in loaded if not case.inside.all()]
    return found


def draw(found: dict[str, list[ModelCase]], path: Path) -> None:
    """A middle slice of the first scan of each kind, and the mean profiles."""
    figure, axes = plt.subplots(
        1, len(found) + 1, figsize=(3 * len(found) + 4, 3.4), width_ratios=[3] * len(found) + [4]
    )
    for panel, (name, cases) in zip(axes, found.items(), strict=False):
        x, y, z = cases[0].field_of_view
        panel.imshow(np.asarray(cases[0].image[0])[x, y, (z.start + z.stop) // 2].T, cmap="gray", origin="lower")
        panel.set_title(name)
        panel.axis("off")
    for name, cases in found.items():
        axes[-1].plot(np.nanmean([profile(case) for case in cases], axis=0), marker=".", label=name)
    axes[-1].set(xlabel="depth below the border, voxels", ylabel="mean intensity, 0 to 1", ylim=(0, None))
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print and write the figure of each kind."""
    parser = arguments(__doc__ or "", "rims")
    parser.add_argument("runs", nargs="+", help="NAME=RUN")
    parser.add_argument("--split", default="train", help="split of the real scans")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (word.partition("=") for word in options.runs)}
    found = measure(runs, options.split, options.work / "cache")
    print(machine())
    figures = {}
    for name, cases in found.items():
        profiles = [profile(case) for case in cases]
        values = rim(profiles)
        figures[name] = {
            "n": len(cases),
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)),
            "profile": np.nanmean(profiles, axis=0).tolist(),
        }
        print(f"{name:20} n {len(cases):4}  rim {values.mean():.3f}, standard deviation {values.std(ddof=1):.3f}")
    if options.picture:
        draw(found, options.picture)
    save_result(options.result, [0], len(found["real"]), {"split": options.split, "kinds": figures})


if __name__ == "__main__":
    main()
