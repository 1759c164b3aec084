"""Trains nnU-Net v2 and then segments scans on request. Runs in an environment of its own, which need not have medaug.

Called as `python nnunet_worker.py FOLDER` with nnU-Net's three folders in the environment. FOLDER holds `job.json`:
dataset, steps, seed, parent (process that waits), num_workers, batch_size, weights (of each case), spacing (z, y, x)
and sided (whether left and right must not be exchanged). After training it prints `ready`. For every line
`INPUT<tab>OUTPUT` on standard input, with an image (M, Z, Y, X) in INPUT, it writes the probability of every class (C,
Z, Y, X) to OUTPUT and prints `done`. It ends with its input. Without nnU-Net it exits with status 3.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

EPOCH = 250
"""nnU-Net lowers its learning rate after every epoch, by default 250 steps."""
ABSENT = 3


def make_trainer(module: Any, job: dict[str, Any]) -> Any:
    """A trainer class for a job: nnU-Net's own, for a number of steps, on all cases and without checkpoints."""

    class Loader(module.nnUNetDataLoader):
        """Chooses each case with its weight; nnU-Net has this parameter, but no trainer that sets it."""

        def __init__(self, data: Any, *arguments: Any, **options: Any) -> None:
            chances = np.array([job["weights"][name] for name in data.identifiers], float)
            super().__init__(data, *arguments, **options | {"sampling_probabilities": chances / chances.sum()})

    class Trainer(module.nnUNetTrainer):
        # nnU-Net reads the names of these arguments.
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = -(-job["steps"] // EPOCH)
            self.num_val_iterations_per_epoch = 1

        def on_epoch_start(self) -> None:
            super().on_epoch_start()
            self.num_iterations_per_epoch = min(EPOCH, job["steps"] - self.current_epoch * EPOCH)

        def train_step(self, batch: Any) -> Any:
            if os.getppid() != job["parent"]:  # whoever wanted the result was killed
                os._exit(1)
            return super().train_step(batch)

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
            *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            if job["sided"]:
                order = list(self.plans_manager.transpose_forward)
                side = order.index(2) - (3 - len(self.configuration_manager.patch_size))  # x is nnU-Net's last axis
                axes = tuple(axis for axis in axes or () if axis != side)
                self.inference_allowed_mirroring_axes = axes
            return (*others, axes)

        def on_epoch_end(self) -> None:
            self.current_epoch += 1

        def on_train_end(self) -> None:
            pass

    module.nnUNetDataLoader = Loader
    return Trainer


def train(job: dict[str, Any]) -> Any:
    """Plan, preprocess and train; returns nnU-Net's predictor."""
    try:
        import nnunetv2  # noqa: F401
    except ImportError:
        sys.exit(ABSENT)
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    number, name = job["dataset"]
    planning.extract_fingerprints([number], num_processes=1, show_progress_bar=False)
    plans_name = planning.plan_experiments([number])
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / name  # noqa: SIM112
    path = preprocessed / f"{plans_name}.json"
    plans = json.loads(path.read_text())
    configuration = "3d_fullres" if "3d_fullres" in plans["configurations"] else "2d"
    plans["configurations"][configuration]["batch_size"] = job["batch_size"]
    path.write_text(json.dumps(plans))
    planning.preprocess([number], plans_name, (configuration,), (1,), show_progress_bar=False)
    os.environ["nnUNet_n_proc_DA"] = str(job["num_workers"])  # noqa: SIM112 (not before: its planner counts threads)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False  # its trainer takes this from the plans
    trainer = make_trainer(module, job)(plans, configuration, "all", dataset, device=device)
    trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        dataset,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def main() -> None:
    """Train, then answer requests."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nnU-Net prints to standard output
    job = json.loads((Path(sys.argv[1]) / "job.json").read_text())
    predictor = train(job)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        settings = {"spacing": job["spacing"]}
        _, shares = predictor.predict_single_npy_array(np.load(source), settings, save_or_return_probabilities=True)
        np.save(target, np.asarray(shares, np.float32))
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
