"""Compare what two versions of medaug compute with the same seeds: weights, samples, scores.

python tests/same_bits.py --write FILE.json      run all stages for a few steps and write the digests
python tests/same_bits.py --against FILE.json    the same, name what is new, differs or is gone; 1 if any is not new

Digests are of arrays and of tables, not of files: a checkpoint's card and a report's words may change.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

STAGES = ("train", "generate", "predict", "audit", "benchmark")
WORDS = {
    "train": ("trainer.max_steps=8", "trainer.score_every=4", "trainer.score_num=2", "trainer.selector_steps=2"),
    "generate": ("num=4",),
    "audit": ("judge_steps=2", "guidance_scales=[0,1]"),
    "benchmark": ("seeds=[0]", "steps=2"),
}
PREDICT = {"demo": ("inpaint=[oedema]",), "hippocampus": ("inpaint=[Anterior]", "split=val")}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + str(array.dtype).encode()).hexdigest()[:16]


def made(run: Path) -> dict[str, str]:
    """Digests of everything below a run folder that the seeds decide, by name."""
    digests = {}
    for path in sorted(run.rglob("*.nii.gz")):
        if "cache" not in path.parts:
            digests[str(path.relative_to(run))] = digest(np.asarray(nib.load(path).dataobj))
    for path in [run / "train/last.ckpt", run / "train/best.ckpt"]:
        for name, value in torch.load(path, map_location="cpu", weights_only=True)["state_dict"].items():
            digests[f"{path.name} {name}"] = digest(value.float().numpy())
    for path in sorted(run.rglob("*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # By metric, so that a new metric is new, and the values of the others stay the same.
        for metric in dict.fromkeys(row.get("metric", "") for row in rows):
            chosen = [row for row in rows if row.get("metric", "") == metric]
            for column in chosen[0]:
                values = [row[column] or "nan" for row in chosen]
                if "second" not in column and all(map(_is_number, values)):
                    name = f"{path.relative_to(run)} {column} {metric}".rstrip()
                    digests[name] = digest(np.array(values, dtype=np.float64))
    return digests


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def run_stages(folder: Path, experiment: str, preset: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for stage in STAGES:
        named = (f"experiment={experiment}", f"preset={preset}", f"runs={folder}")
        words = PREDICT[experiment] if stage == "predict" else WORDS[stage]
        command = [sys.executable, "-m", f"medaug.{stage}", *named, *words]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{' '.join(command)}\n{result.stderr}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--experiment", choices=PREDICT, default="demo")
    parser.add_argument("--preset", default="smoke")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run_stages(Path(folder), chosen.experiment, chosen.preset)
        now = made(Path(folder) / chosen.experiment)
    if chosen.write:
        chosen.write.write_text(json.dumps(now, indent=1) + "\n")
        print(f"{len(now)} digests")
    if chosen.against:
        before = json.loads(chosen.against.read_text())
        differing = [name for name in before if before[name] != now.get(name)]
        for name in differing:
            print(f"{name}: {'differs' if name in now else 'absent now'}")
        for name in (new := sorted(now.keys() - before.keys())):  # an added result changes none
            print(f"{name}: new")
        print(f"{len(before)} digests before, {len(differing)} differ, {len(new)} new")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
