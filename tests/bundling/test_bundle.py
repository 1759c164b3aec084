"""A bundle runs by monai.bundle with its own copy of what it needs, and gives the images that medaug gives."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import model_options
from safetensors.torch import load_file

import medaug
from medaug.bundling.sources import needed_sources
from medaug.bundling.writer import PACKAGES, metadata, write_bundle
from medaug.cohort.schema import LabelSchema
from medaug.data.preprocessing import Preprocessing
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.samplers import Sampling
from medaug.entries import OWN
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.training.checkpoint import Card

SCHEMA = LabelSchema(((0, "background"), (2, "shell"), (5, "core")))
# Only what the bundle's metadata names may be imported, and medaug only from the bundle.
RUN = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "hydra", "omegaconf", "SimpleITK", "highdicom", "nilearn", "gdcm"}:
            raise ModuleNotFoundError(f"no module {name} here", name=name)
sys.meta_path.insert(0, Refuse())
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one)]
sys.path[:] = [place for place in sys.path if place not in ("", sys.argv[3])]
from monai.bundle import run
run(config_file=sys.argv[1] + "/configs/inference.json", bundle_root=sys.argv[1], mask_dir=sys.argv[2], seed=3,
    num_inference_steps=3, device="cpu")
ours = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "medaug"}
assert ours and all(file.startswith(sys.argv[1]) for file in ours), ours
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Card]:
    """A checkpoint with random weights, of a cohort whose scans are resampled, and its card."""
    options = model_options(coordinates=True) | {"data": {}, "task": {}}
    space = Preprocessing((16, 16, 12), (1.0, 1.0, 1.5), (0.5, 99.5))
    scale = ((10.0, 900.0), (-5.0, 40.0))
    subjects = {"train": ["Quackenbush"], "val": []}
    card = Card("toy", options, space, SCHEMA, ("T1", "T2"), subjects, False, scale=scale)
    torch.manual_seed(0)
    model = card.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("train") / "last.ckpt"
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "medaug": card.to_dict()}, path)
    path.with_name("README.md").write_text("the model card\n")
    return path, card


@pytest.mark.slow
def test_a_bundle_gives_the_images_of_the_model_without_medaug(trained, tmp_path):
    path, card = trained
    bundle, masks = tmp_path / "bundle", tmp_path / "masks"
    write_bundle(path, bundle)
    affine = np.array([[0, -1.0, 0, 8], [1.0, 0, 0, -6], [0, 0, 1.5, 2], [0, 0, 0, 1]])  # the model's voxels, turned
    label = np.zeros((16, 16, 12), np.uint8)
    label[3:11, 4:12, 2:9], label[5:8, 6:9, 4:7] = 2, 5
    write_volume(masks / "one.nii.gz", label, affine)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", RUN, str(bundle), str(masks), str(Path(medaug.__file__).parents[1])]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    model = card.build().eval()
    model.load_state_dict(load_file(bundle / "models/model.safetensors"))
    upright = np.asanyarray(nib.as_closest_canonical(nib.load(masks / "one.nii.gz")).dataobj)
    indices = torch.from_numpy(np.searchsorted([0, 2, 5], upright))[None]
    expected = model.sample(indices, [3], Sampling("dpmpp_2m", 3), Guidance(2.0))[0].numpy()
    for number, (low, high) in enumerate(card.scale):
        image = nib.load(bundle / f"images/one_{number:04d}.nii.gz")
        np.testing.assert_array_equal(image.affine, affine)
        assert image.header["descrip"].item() == b"medaug synthetic"
        shown = np.asanyarray(nib.as_closest_canonical(image).dataobj)
        np.testing.assert_allclose(shown, low + (expected[number] + 1) / 2 * (high - low), rtol=1e-4, atol=1e-3)
    assert (bundle / "docs/README.md").read_text() == "the model card\n"
    texts = [file.read_text() for file in bundle.rglob("*.json")]
    assert not any("Quackenbush" in text for text in texts)
    about = json.loads((bundle / "configs/metadata.json").read_text())
    assert about["network_data_format"]["inputs"]["mask"]["channel_def"] == {
        "0": "background",
        "2": "shell",
        "5": "core",
    }
    assert {"einops", "safetensors", "nibabel"} <= about["required_packages_version"].keys()


@pytest.mark.slow
def test_a_bundle_carries_only_what_the_generator_imports():
    sources = needed_sources("medaug.bundling.generator")
    names = sources.keys()
    assert {"medaug/__init__.py", "medaug/networks/spade.py", "medaug/diffusion/spacings.py"} <= names
    assert not [
        name for name in names if name.split("/")[1] in {"comparison", "dicom", "layouts", "screening", "api.py"}
    ]

    imported = set()
    for node in (node for text in sources.values() for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    named = {"scikit-image": "skimage", "PyYAML": "yaml"}
    known = {named.get(name, name) for name in PACKAGES} | {"medaug", "monai", "torch", "numpy"}
    # SimpleITK estimates bias fields of scans, and a bundle has none.
    assert imported - known - sys.stdlib_module_names == {"SimpleITK"}


def test_models_that_a_bundle_cannot_hold_are_refused(trained, tmp_path, monkeypatch):
    path, card = trained

    def refused(card: Card, text: str) -> None:
        monkeypatch.setattr("medaug.bundling.writer.load_model", lambda path, device: (card, card.build()))
        with pytest.raises(UserError, match=text):
            write_bundle(path, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    body = replace(card, preprocessing=replace(card.preprocessing, crop="body"))
    refused(body, "crops scans to the body, and a bundle has no scan to crop; train with data.crop=none")
    refused(
        replace(card, options=card.options | {"task": {"target": "label", "mask": False}}),
        "generates masks, not images",
    )
    with pytest.raises(UserError, match="exists already; choose a folder that does not"):
        write_bundle(path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(OWN, "codecs", {})
        refused(card, "uses haar, an entry of another package, which a bundle cannot carry")
    assert metadata(replace(card, phantom=True))["description"].endswith("phantoms, not of patients.")
