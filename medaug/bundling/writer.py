"""Writes a trained generator as a MONAI bundle that runs without medaug."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save

from medaug.bundling.generator import CARD, WEIGHTS
from medaug.bundling.sources import TABLES, needed_sources
from medaug.cohort.hub import FILE
from medaug.entries import OWN
from medaug.errors import UserError
from medaug.files import atomic_write, put_folder, temporary_folder, write_json
from medaug.inputs import opened
from medaug.synthesis.recipes import check_task
from medaug.training.checkpoint import Card, load_model

PACKAGES = ("nibabel", "scipy", "scikit-image", "einops", "PyYAML", "safetensors", "fire")
"""What the bundle needs besides MONAI, torch and numpy; fire only for `python -m monai.bundle`."""
_TABLE_KEYS = {"noise_schedule": "schedules", "prediction_type": "predictions", "loss_weight": "loss_weights"}


def write_bundle(checkpoint: Path, out: Path) -> None:
    """Write `configs`, `models`, `docs` and the modules of medaug that the generator needs.

    The folder is complete or absent.

    The weights are the averaged ones. The names of the subjects that the training saw, and the digests of their files,
    are left out.

    Args:
        checkpoint: checkpoint of a model that generates images from masks. If a model card lies beside it, the bundle
            gets a copy in `docs`.
        out: the folder, which must not exist yet.

    Raises:
        UserError: the folder exists, the model needs more than masks, crops scans to the body, or uses an entry of
            another package; or the disk is full.
    """
    if out.exists():
        raise UserError("exists already", "choose a folder that does not, with out=DIR", path=out)
    import torch

    card, model = load_model(checkpoint, torch.device("cpu"))
    check_task(model.task, card, checkpoint)
    _check(card, checkpoint)
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    sources = needed_sources("medaug.bundling.generator")
    with temporary_folder(out) as unfinished:
        write_json(unfinished / "configs/metadata.json", metadata(card))
        write_json(unfinished / "configs/inference.json", inference(card))
        write_json(unfinished / "models" / CARD, {**card.to_dict(), "subjects": {}, "contents": {}, "base": None})
        _write(unfinished / "models" / WEIGHTS, save(weights))
        for name, content in sources.items():
            _write(unfinished / name, content)
        if (described := checkpoint.with_name(FILE)).is_file():
            with opened(described) as file:
                _write(unfinished / "docs" / FILE, file.read())
        put_folder(unfinished, out)


def inference(card: Card) -> dict[str, Any]:
    """The configuration that `monai.bundle run` reads: an image for every mask in `mask_dir`."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "device": "$'cuda' if __import__('torch').cuda.is_available() else 'cpu'",
        "mask_dir": "$os.path.join(@bundle_root, 'masks')",
        "output_dir": "$os.path.join(@bundle_root, 'images')",
        "seed": 0,
        "guidance_scale": 2.0,
        "sampler": "dpmpp_2m",
        "num_inference_steps": 8,
        "masks": "$sorted(glob.glob(os.path.join(@mask_dir, '*.nii.gz')))",
        "generator": {
            "_target_": "medaug.bundling.generator.BundledGenerator",
            "folder": "$os.path.join(@bundle_root, 'models')",
            "device": "@device",
        },
        "network_def": "$@generator.model",
        "run": [
            "$[@generator.write(mask, @output_dir, @seed + i, @guidance_scale, @sampler, @num_inference_steps) "
            "for i, mask in enumerate(@masks)]"
        ],
    }


def metadata(card: Card) -> dict[str, Any]:
    """What the bundle is, in the fields of MONAI's metadata."""
    shape, classes = list(card.preprocessing.shape), card.schema.names
    mask = {
        "type": "label",
        "format": "segmentation",
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": "uint8",
        "value_range": [min(card.schema.values), max(card.schema.values)],
        "is_patch_data": False,
        "channel_def": {str(value): name for value, name in zip(card.schema.values, classes, strict=True)},
    }
    image = {
        "type": "image",
        "format": "magnitude",
        "num_channels": len(card.modalities),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {str(number): name for number, name in enumerate(card.modalities)},
    }
    notice = " The cohort consists of phantoms, not of patients." if card.phantom else ""
    return {
        "version": version("medaug"),
        "changelog": {version("medaug"): "written by medaug"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in PACKAGES if name != "fire"} | {"fire": ""},
        "task": "synthetic medical images from masks",
        "description": f"Diffusion model of {card.experiment}. Not for clinical use.{notice}",
        "authors": "made with medaug",
        "copyright": "see the licence of the cohort in docs/README.md",
        "intended_use": "research: training data for segmentation",
        "network_data_format": {"inputs": {"mask": mask}, "outputs": {"image": image}},
    }


def _check(card: Card, checkpoint: Path) -> None:
    if card.preprocessing.crop != "none":
        raise UserError(
            "crops scans to the body, and a bundle has no scan to crop",
            "train with data.crop=none for a bundle",
            path=checkpoint,
        )
    for kind, name in _chosen(card.options):
        if name not in OWN[kind]:
            raise UserError(
                f"uses {name}, an entry of another package, which a bundle cannot carry",
                "run it with medaug",
                path=checkpoint,
            )


def _chosen(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    process = [(table, options["process"][key]) for key, table in _TABLE_KEYS.items() if key in options["process"]]
    others = [(f"{node}s", options[node].get("name")) for node in ("network", "codec")]
    return [(table, name) for table, name in (*process, *others) if name is not None and table in TABLES]


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
