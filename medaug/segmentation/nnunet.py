"""nnU-Net v2 as a segmenter: it plans, augments and trains itself, in a Python environment of its own.

nnU-Net sees scans in model space, like every other backend, so that all arms and backends segment the same images. It
is planned for the grid of the model space; only the batch size is ours, because nnU-Net would derive it from the number
of scans, which differs between arms.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE
from medaug.data.augmentations import mirror_axes
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.files import write_json
from medaug.imaging.nifti import write_volume
from medaug.options import SegmenterOptions
from medaug.segmentation.nnunet_worker import ABSENT
from medaug.segmentation.protocol import Problem, TrainingSet

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("nnunet_worker.py")
DATASET = (1, "Dataset001_medaug")
PYTHON = "MEDAUG_NNUNET"
"""Environment variable that names the Python of an environment with nnU-Net, if `segmenter.nnunet` does not."""
_INSTALL = "install nnunetv2 in an environment of its own and name its Python by segmenter.nnunet=PATH or " + PYTHON


class NNUNetSegmenter:
    """nnU-Net, trained in a process that then waits for scans to segment.

    Args:
        problem: what to segment.
        options: batch size, processes that load data, and the Python of nnU-Net's environment.
    """

    def __init__(self, problem: Problem, options: SegmenterOptions) -> None:
        self.problem = problem
        self.options = options
        self.name = ""

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        """Train for a number of steps with nnU-Net's own augmentation and learning rate; see `Segmenter.fit`.

        Real and synthetic cases have their shares on average over the steps. The same arguments give the same segmenter
        only with `segmenter.num_workers=0`.

        Raises:
            UserError: the training set has no augmentation, pseudo-labels or a phase without synthetic cases, which
                nnU-Net cannot do; nnU-Net is absent, or it failed.
        """
        if training_set.augment is None or training_set.pseudo is not None or training_set.synthetic_finish:
            raise UserError(
                f"{name}: backend nnunet always augments by itself, and has neither pseudo-labels nor synthetic_finish",
                "leave the arm out, or choose backend=dynunet",
            )
        self.name = name
        self._temporary = tempfile.TemporaryDirectory(prefix="medaug_nnunet_")
        self.folder = Path(self._temporary.name)
        weights = self._write_cases(training_set)
        job = {
            "dataset": DATASET,
            "steps": steps,
            "seed": seed,
            "parent": os.getpid(),
            "num_workers": self.options.num_workers,
            "batch_size": self.options.batch_size,
            "weights": weights,
            "sided": not mirror_axes(self.problem.schema),
            "spacing": self._spacing[::-1],
        }
        write_json(self.folder / "job.json", job)
        log.info("%s: nnU-Net trains for %d steps", name, steps)
        self._start()
        self._wait_for("ready")

    def predict(self, case: ModelCase) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) on the scan's own grid.

        Raises:
            UserError: nnU-Net failed.
        """
        label = self._shares(case.image).argmax(axis=0).astype(np.uint8)
        return self.problem.preprocessing.invert_label(label, case.placement)

    def probabilities(self, case: ModelCase) -> NDArray[np.float32]:
        """Probability of every class, (num_classes, X, Y, Z), on the scan's own grid.

        Raises:
            UserError: nnU-Net failed.
        """
        return self.problem.preprocessing.invert_probabilities(self._shares(case.image)[1:], case.placement)

    @property
    def _spacing(self) -> list[float]:
        return [float(side) for side in self.problem.preprocessing.spacing or (1.0, 1.0, 1.0)]

    def _write_cases(self, training_set: TrainingSet) -> dict[str, float]:
        """Write the dataset; returns how often each case is to be chosen, relative to the others."""
        root, schema, ignored = self.folder / "raw" / DATASET[1], self.problem.schema, False
        affine = np.diag([*self._spacing, 1.0])
        share = training_set.num_synthetic(1.0) if training_set.exact else training_set.synthetic_share
        if not (training_set.real and training_set.synthetic):
            share = 1.0 if training_set.synthetic else 0.0
        weights = {}
        kinds = (("real", training_set.real, 1 - share), ("synthetic", training_set.synthetic, share))
        for kind, cases, part in kinds:
            for number, case in enumerate(cases):
                name = f"{kind}_{number:05d}"
                weights[name] = part / len(cases)
                for channel, volume in enumerate(case.image):
                    write_volume(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", np.asarray(volume), affine)
                label = np.asarray(case.label)
                ignored = ignored or bool((label == IGNORE).any())
                values = np.where(label == IGNORE, schema.num_classes, label).astype(np.uint8)
                write_volume(root / "labelsTr" / f"{name}.nii.gz", values, affine)
        names = {f"class_{index}" if index else "background": index for index in range(schema.num_classes)}
        dataset = {
            "channel_names": {str(i): f"channel_{i}" for i in range(training_set.num_modalities)},
            "labels": names | ({"ignore": schema.num_classes} if ignored else {}),
            "numTraining": len(weights),
            "file_ending": ".nii.gz",
        }
        write_json(root / "dataset.json", dataset)
        return weights

    def _start(self) -> None:
        self.python = self.options.nnunet or os.environ.get(PYTHON) or sys.executable
        places = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        settings = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false"}
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | places | settings
        self.log = self.folder / "log.txt"
        try:
            with self.log.open("w") as errors:
                self.process = subprocess.Popen(
                    [self.python, str(WORKER), str(self.folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
        except OSError as error:
            raise UserError(
                "nnU-Net's Python cannot be started", _INSTALL, path=Path(self.python), detail=error.strerror or ""
            ) from None
        weakref.finalize(self, _stop, self.process, self._temporary)

    def _shares(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (num_classes, X, Y, Z) for an image (M, X, Y, Z) in model space."""
        source, target = self.folder / "image.npy", self.folder / "shares.npy"
        np.save(source, np.ascontiguousarray(np.asarray(image).transpose(0, 3, 2, 1)))
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{source}\t{target}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        self._wait_for("done")
        return np.asarray(np.load(target).transpose(0, 3, 2, 1))

    def _wait_for(self, word: str) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != word:
            self._fail()

    def _fail(self) -> None:
        """Raise what nnU-Net's last lines say."""
        code = self.process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no message"
        if code == ABSENT:
            raise UserError("backend=nnunet: this Python has no nnU-Net", _INSTALL, path=Path(self.python))
        raise UserError(f"{self.name}: nnU-Net failed (exit status {code})", "see its message", detail=last)


def _stop(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    """End the process, which waits for requests, and remove its files."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    folder.cleanup()
