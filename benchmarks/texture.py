"""Texture of synthetic volumes against real ones; the limit is twice the difference of two halves of the real ones.

python benchmarks/texture.py CHECKPOINT [key=value of medaug.generate ...] [--split val]

Mean absolute gradient and power per octave band of spatial frequency (model space, centre crop): one synthetic volume
for each mask of the split, against that split's scans. The halves are random halves of the split's subjects. Volumes
are kept in --work, and the same command goes on from there.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from common import arguments, machine, save_result
from quality import drawing, load_cohort, sampled, sampling

from medaug.evaluation.fidelity import deviations, texture, texture_names
from medaug.files import file_sha256
from medaug.training.checkpoint import load_model


def main() -> None:
    """Sample, and print and write the table."""
    parser = arguments(__doc__ or "", "texture")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", choices=["train", "val"], default="val", help="whose masks and scans")
    parser.add_argument("words", nargs="*", help="key=value of medaug.generate")
    options = parser.parse_intermixed_args()
    card, model = load_model(options.checkpoint, torch.device("cpu"))
    digest = file_sha256(options.checkpoint)
    cohort = load_cohort(card.experiment, options.work / "cache", card.preprocessing)
    cases = getattr(cohort, options.split)
    settings = sampling(card.experiment, options.words)
    folder = options.work / digest[:12] / "_".join([options.split, *options.words]).replace("/", "_")
    volumes = sampled(folder, settings | {"checkpoint": digest}, cases, drawing(model, settings))
    subjects = [case.case.subject for case in cases]

    print(f"{machine()}; {len(cases)} volumes of {len(set(subjects))} subjects")
    tables = {}
    for m, modality in enumerate(cohort.manifest.modalities):
        real = np.array([texture(np.array(case.image[m])) for case in cases])
        synthetic = np.array([texture(volume[m]) for volume in volumes])
        rows = deviations(synthetic, real, subjects, texture_names(real.shape[1] - 1), seed=0)
        tables[modality] = [asdict(row) | {"ratio": row.ratio, "passed": row.passed} for row in rows]
        print(f"{modality:32}{'real':>10}{'synthetic':>11}{'difference':>12}{'halves':>10}{'ratio':>8}  at most 2")
        for row in rows:
            change = row.synthetic - row.real
            print(
                f"{row.name:32}{row.real:10.4f}{row.synthetic:11.4f}{change:+12.4f}{row.halves_mean:10.4f}"
                f"{row.ratio:8.2f}  {'met' if row.passed else 'missed'}"
            )
    figures = {"checkpoint": digest, "split": options.split, "sampling": settings, "tables": tables}
    save_result(options.result, [0], len(cases), figures)


if __name__ == "__main__":
    main()
