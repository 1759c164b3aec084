"""Every stage accepts the keys that its code reads, and reads those that it accepts."""

from __future__ import annotations

from functools import cache

import pytest
from option_reads import KEYS, Reader, _trees, reads

from medaug.stages import STAGES
from medaug.train import MODEL_NODES

COMPOSED = {"experiment", "preset"}  # choose other keys' values, before any stage begins
BY_SWEEPS = {"train.objective"}
NAMES_OF_SETS = {f"{stage}.name" for stage in ("generate", "audit", "benchmark", "export", "gallery")}
"""`paths.set_of_pairs` reads all of them, but only that of the running stage can be set."""
BY_LAUNCHER = {"umask"}  # of the whole process, before a stage begins


@cache
def names():
    """Every word in the package, as an attribute or a text, apart from the declarations of options and stages."""
    reader = Reader()
    for module, tree in _trees().items():
        if not module.startswith(("medaug.options", "medaug.stages")):
            reader.follow(module, tree, {})
    return reader.words


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_accepts_what_it_reads(stage):
    found = reads(stage).read
    assert len(found) >= {"verify": 3, "status": 1, "new": 2}.get(stage, 5)
    assert not [path for path in sorted(found - NAMES_OF_SETS) if not STAGES[stage].accepts(path)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_it_accepts(stage):
    """What a model is made of is read from plain dictionaries, so of these keys only the name is looked for."""
    made_of = {path for path in KEYS if path.split(".")[0] in MODEL_NODES}
    accepted = {path for path in KEYS if STAGES[stage].accepts(path)} - COMPOSED - BY_SWEEPS - BY_LAUNCHER
    unread = accepted - reads(stage).read
    assert not [path for path in sorted(unread) if path not in made_of or path.split(".")[-1] not in names()]


def test_what_is_read_is_found_through_names_calls_and_constructors():
    train, predict = reads("train").read, reads("predict").read
    assert {
        "trainer.learning_rate",
        "segmenter.channels",
        "codec.name",
        "data.fold",
        "trainer.score_num",
    } <= train
    assert {"predict.margin", "sampler.eta", "predict.batch_size"} <= predict
    assert "generate.num" not in train | predict
