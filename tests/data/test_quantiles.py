"""Quantiles of intensities as attributes: numpy's, on the scan in model space, and part of every batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import model_options
from small_cohort import SCHEMA, write_case

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.config import load_options
from medaug.data.batches import as_tensors
from medaug.data.quantiles import find_quantiles, with_quantiles
from medaug.errors import UserError
from medaug.training.data import load_training_data
from medaug.training.model import DiffusionModel

NAMES = ["p10/lesion/T1", "p90/lesion"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data of a training on three scans, of which the last training scan has no label."""
    root = tmp_path_factory.mktemp("cohort")
    splits = {"a": "train", "b": "train", "c": "train", "d": "val"}
    cases = [write_case(root, name, name, split, seed) for seed, (name, split) in enumerate(splits.items())]
    cases[2] = replace(cases[2], label=None)
    Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(root)).save(root / "manifest.json")
    words = ["experiment=demo", "data=manifest", f"data.manifest={root / 'manifest.json'}"]
    options = load_options("train", [*words, f"data.attributes=[{','.join(NAMES)}]", "data.percentiles=[0,100]"])
    identity = model_options() | {"task": {}, "data": {}}
    return load_training_data(options, identity, root / "run", None)[0]


def test_training_scans_have_the_quantiles_of_their_lesions(data):
    measured = [case.case.attributes for case in (*data.train, *data.val)]
    assert [set(values) for values in measured] == [set(NAMES), set(NAMES), set(), set(NAMES)]
    for case in (*data.train[:2], *data.val):
        voxels = np.sort(case.image[0][case.label == 1])
        for name, share in zip(NAMES, (0.1, 0.9), strict=True):
            below, rest = divmod(share * (len(voxels) - 1), 1)  # linear interpolation between order statistics
            expected = voxels[int(below)] * (1 - rest) + voxels[int(below) + 1] * rest
            assert case.case.attributes[name] == pytest.approx(float(expected), abs=1e-6)
    encoder = data.card.attributes
    assert [attribute.name for attribute in encoder.attributes] == NAMES
    values = np.array([[values[name] for name in NAMES] for values in measured[:2]])
    np.testing.assert_allclose([attribute.mean[0] for attribute in encoder.attributes], values.mean(0))


def test_a_requested_value_reaches_the_network(data):
    encoder = data.card.attributes
    low, high = encoder.attributes[1].low[0], encoder.attributes[1].high[0]
    asked = encoder.requested([f"{NAMES[1]}:{(low + high) / 2}"])
    assert asked == {NAMES[1]: (low + high) / 2}
    with pytest.raises(UserError, match=r"p90/lesion:7: training saw no such p90/lesion; choose from"):
        encoder.requested([f"{NAMES[1]}:7"])
    torch.manual_seed(0)
    model = DiffusionModel(model_options(), 1, 2, "fp32", attributes=encoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = {key: value[None] for key, value in as_tensors(data.train[0], encoder).items()} | {"seed": torch.arange(1)}
    other = batch | {"attributes": encoder.encode({NAMES[0]: low - 1, **asked})[None]}
    assert (model.loss(batch) - model.loss(other)).abs() > 1e-6
    assert batch["attributes"][0, -1] == 1 and not as_tensors(data.train[2], encoder)["attributes"].any()


def test_what_is_refused():
    schema = LabelSchema(((0, "background"), (1, "oedema")))
    assert find_quantiles(["site", "spacing"], schema, ("T1", "T2")) == () and with_quantiles([], ()) == []
    for name, reason in {
        "p101/oedema/T1": "101 is no percentile; give 0 to 100",
        "p5/edema/T1": "no structure edema; choose from oedema",
        "p5/oedema": "does not say which modality; add one, as in p5/oedema/T1",
        "p5/oedema/T3": "no modality T3; choose from T1, T2",
    }.items():
        with pytest.raises(UserError, match=f"data.attributes: {name}: {reason}"):
            find_quantiles([name], schema, ("T1", "T2"))
