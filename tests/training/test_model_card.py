"""The model card says what the run's own values say."""

from __future__ import annotations

from dataclasses import asdict, replace

import yaml

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import Attribute, AttributeEncoder
from medaug.data.preprocessing import Preprocessing
from medaug.options import Options
from medaug.training.checkpoint import Base, Card
from medaug.training.fit import TrainingResult
from medaug.training.model_card import model_card, write_model_card

SCHEMA = LabelSchema(((0, "background"), (1, "anterior"), (2, "posterior")))
COHORT = Manifest(
    "hippo", "two | parts", ("T1", "T2"), SCHEMA, (Case("a", ("a",), None, "s"),), "/", licence="CC BY 4.0"
)
RESULT = TrainingResult(600, 1_234_000, 30, 20, 5, 0.12345, {"step": 400, "score": 0.71})


def toy_card(**task) -> Card:
    options = Options()
    nodes = {
        name: asdict(getattr(options, name)) for name in ("data", "task", "codec", "network", "process", "trainer")
    }
    nodes["task"] |= task
    nodes["trainer"] |= {"batch_size": 4, "accumulate": 2}
    space = Preprocessing((48, 56, 40), (1.0, 1.0, 1.2), (0.5, 99.5))
    subjects = {"train": ["s1", "s2"], "val": ["s3"]}
    return Card("mine", nodes, space, SCHEMA, ("T1", "T2"), subjects, phantom=False)


def rows(text: str) -> dict[str, str]:
    return dict(
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and line != "| | |"
    )


def test_the_card_says_what_from_whom_and_under_which_licence(tmp_path):
    card = toy_card()
    write_model_card(card, COHORT, RESULT, tmp_path)
    text = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {"license": "cc-by-4.0", "library_name": "medaug", "tags": ["medical", "diffusion", "medaug"]}
    found = rows(text)
    assert found["generates"] == "T1, T2" and found["from"] == "masks" and found["classes"] == "anterior, posterior"
    assert found["grid"] == "48x56x40 voxels of 1 x 1 x 1.2 mm" and "1.23 M parameters" in found["network"]
    assert found["training"] == "600 steps, 8 samples per device and step" and found["validation loss"] == "0.1235"
    assert found["training scans"] == "30, of which 20 have a label" and found["validation scans"] == "5"
    assert found["subjects seen"] == "2 in train, 1 in val" and found["cohort"] == "hippo: two / parts"
    assert (
        found["licence"].startswith("CC BY 4.0 (")
        and "step 400" in found["best.ckpt"]
        and "0.710" in found["best.ckpt"]
    )
    assert "medaug generate experiment=mine" in text and "Not for clinical use" in text
    assert "names no licence" not in text and "phantoms" not in text


def test_other_tasks_bases_and_what_is_missing():
    card = toy_card(modalities=["T2"], given=["T1"], mask=False)
    encoder = AttributeEncoder((Attribute("site", categories=("A", "B")),))
    base = Base("before", "f" * 64, {"train": ["s9"], "val": []})
    card = replace(card, attributes=encoder, base=base, phantom=True)
    text = model_card(
        card, replace(COHORT, licence=""), replace(RESULT, validation_cases=0, validation_loss=None, best=None)
    )
    found = rows(text)
    assert found["generates"] == "T2" and found["from"] == "T1, site" and "before" in found["started from"]
    assert found["subjects seen"] == "3 in train, 1 in val, those of earlier trainings included"
    assert found["validation loss"] == "none" and "best.ckpt" not in found
    for sentence in ("not of patients", "names no licence", "No scan was held back", "medaug predict experiment=mine"):
        assert sentence in text
    assert rows(model_card(toy_card(target="label", mask=False), COHORT, RESULT))["generates"] == "masks"
