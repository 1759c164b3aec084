"""How often a segmenter trained on real scans finds inserted lesions, compared with real lesions of the same size.

python benchmarks/inserted_lesions.py RUN [--steps 600] [--folds 2] [--seed 0]

RUN is a folder runs/EXPERIMENT whose `synthetic` was made with generate mode=insert. The labelled training subjects are
divided into folds. A segmenter is trained on the scans of the other folds; it is applied to the scans of this fold and
to the pairs whose host is in it. So no segmenter has seen the scans that it is applied to, and inserted and real
lesions lie in the same scans. A lesion is found if the prediction has a voxel in it. Real lesions are weighted so that
their sizes (in bins of a factor of two) are distributed as those of the inserted ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from common import arguments, machine, save_result
from numpy.typing import NDArray
from scipy.ndimage import label as pieces_of
from scipy.stats import binomtest

from medaug.cohort.manifest import Manifest
from medaug.data.cases import ModelCase, load_cases
from medaug.options import SegmenterOptions
from medaug.segmentation.protocol import TrainingSet
from medaug.segmentation.unet import segment, train_segmenter
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import read_checkpoint

Found = tuple[int, bool]
"""The size of a lesion in voxels, and whether it was found."""
Segment = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


def lesions_found(lesions: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> list[Found]:
    """Every lesion (26-connected piece) of a mask (X, Y, Z), and whether the prediction has a voxel in it."""
    pieces, number = pieces_of(lesions, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=number + 1)
    hit = np.bincount(pieces[predicted], minlength=number + 1) > 0
    return [(int(sizes[i]), bool(hit[i])) for i in range(1, number + 1)]


def compare(
    real: Sequence[ModelCase],
    inserted: Sequence[tuple[ModelCase, ModelCase]],
    classes: Sequence[int],
    fold_of: Mapping[str, int],
    train: Callable[[Sequence[ModelCase]], Segment],
) -> tuple[list[Found], list[Found]]:
    """The real and the inserted lesions, and which of them were found.

    Args:
        real: labelled real scans.
        inserted: the edited scans, each with its host.
        classes: class indices of lesions.
        fold_of: the fold of each subject.
        train: trains a segmenter, which returns class indices (X, Y, Z) for an image.
    """
    of_real: list[Found] = []
    of_inserted: list[Found] = []
    for fold in sorted(set(fold_of.values())):
        apply = train([case for case in real if fold_of[case.case.subject] != fold])
        for case in real:
            if fold_of[case.case.subject] == fold:
                of_real += lesions_found(np.isin(case.label, classes), np.isin(apply(case.image), classes))
        for pair, host in inserted:
            if fold_of[host.case.subject] == fold:
                new = np.isin(pair.label, classes) & ~np.isin(host.label, classes)
                of_inserted += lesions_found(new, np.isin(apply(pair.image), classes))
    return of_real, of_inserted


def rates(real: Sequence[Found], inserted: Sequence[Found]) -> dict[str, float]:
    """Detection rates: of inserted lesions, with an exact 95% interval, and of real ones as they are and by size.

    "real_of_that_size" is the mean over the inserted lesions of the rate of real lesions in the same bin of sizes;
    inserted lesions in bins without real ones are left out, and "matched" is the share of the others.
    """
    bins: dict[int, list[bool]] = {}
    for size, hit in real:
        bins.setdefault(int(np.log2(size)), []).append(hit)
    hits = [hit for _, hit in inserted]
    expected = [np.mean(bins[int(np.log2(size))]) for size, _ in inserted if int(np.log2(size)) in bins]
    interval = binomtest(sum(hits), len(hits)).proportion_ci(0.95, "exact")
    return {
        "inserted": float(np.mean(hits)),
        "low": float(interval.low),
        "high": float(interval.high),
        "num_inserted": len(hits),
        "real": float(np.mean([hit for _, hit in real])),
        "num_real": len(real),
        "real_of_that_size": float(np.mean(expected)) if expected else float("nan"),
        "matched": len(expected) / len(hits),
    }


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Train, compare, print and write the figures."""
    parser = arguments(__doc__ or "", "inserted_lesions")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="steps of each segmenter")
    parser.add_argument("--channels", type=int, nargs="+", default=SegmenterOptions().channels, help="its size")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    card, _ = read_checkpoint(options.run / "train" / "last.ckpt")
    cohort, pairs = Manifest.load(options.run / "train" / "manifest.json"), Pairs.load(options.run / "synthetic")
    cache = options.work / "cache"
    labelled = [case for case in cohort.split("train") if case.label is not None]
    real = load_cases(cohort, labelled, card.preprocessing, cache)
    edited = load_cases(pairs.manifest, pairs.manifest.cases, card.preprocessing, cache)
    hosts, records = {case.case.name: case for case in real}, {record["name"]: record for record in pairs.records}
    # Hosts without a label have no fold, because no segmenter is kept from them.
    inserted = [(case, hosts[host]) for case in edited if (host := records[case.case.name]["host"]) in hosts]
    names = pairs.records[0]["mask_parameters"]["lesions"]
    classes = [card.schema.names.index(name) for name in names]
    subjects = sorted({case.subject for case in labelled})
    order = np.random.default_rng(options.seed).permutation(len(subjects))
    folds = {subjects[i]: int(place % options.folds) for place, i in enumerate(order)}

    def train(cases: Sequence[ModelCase]) -> Segment:
        size, count = SegmenterOptions(channels=options.channels), card.schema.num_classes
        net = train_segmenter(TrainingSet(list(cases)), count, size, options.steps, options.seed, "segmenter")
        return lambda image: segment(net, np.array(image))

    figures = rates(*compare(real, inserted, classes, folds, train))
    print(f"{machine()}; {options.steps} steps, {options.folds} folds, seed {options.seed}")
    print(
        f"inserted lesions found: {figures['inserted']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}], n = "
        f"{figures['num_inserted']:.0f}; real ones of that size: {figures['real_of_that_size']:.3f} (all sizes: "
        f"{figures['real']:.3f}, n = {figures['num_real']:.0f})"
    )
    save_result(options.result, [options.seed], len(inserted), figures)
    return figures


if __name__ == "__main__":
    main()
