"""Paths among the options: which keys are paths, and how they are expanded."""

from __future__ import annotations

import re
import shutil

import pytest

from medaug import config, paths
from medaug.errors import UserError
from medaug.keys import names
from medaug.stages import STAGES


def refused(stage: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load_options(stage, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


IS_PATH = {path for path, key in config.keys().items() if key.is_path}


NEEDED = {
    "ingest.to": ["download=Task04_Hippocampus"],
    "codec.checkpoint": ["codec=kl"],
    "masks.checkpoint": ["masks=generated"],
    "benchmark.pairs_seen": ["pairs=x"],
    "audit.cohort": ["pairs=x"],
    "audit.pairs_seen": ["pairs=x"],
    "gallery.key": ["answers=x"],
}


PATHS = [(next(n for n, stage in STAGES.items() if stage.accepts(path)), path) for path in sorted(IS_PATH)]


def test_every_key_that_names_a_file_or_folder_is_known_as_a_path():
    words = re.compile(r"\b(file|folder|folders|manifest|checkpoint|ckpt|CSV|YAML|json)\b")
    described = {path for path, key in config.keys().items() if words.search(key.help) and "str" in str(key.hint)}
    described -= {path for path, key in config.keys().items() if names(key.choices)}
    others = {
        "ingest.mirror",
        "ingest.name",
        "ingest.case_pattern",
        "data.attributes",
        "predict.name",
        "train.objective",
    }
    assert described - others <= IS_PATH


@pytest.fixture
def places(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PLACE", "/place")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(("stage", "path"), PATHS)
def test_paths_are_expanded_wherever_they_are_declared(places, stage, path):
    text = "['~/${PLACE} x']" if path.endswith("roots") else "~/${PLACE} x"
    needed = NEEDED.get(path, [])
    experiment = ["experiment=demo"] if STAGES[stage].accepts("experiment") else []
    found = config.load_options(stage, [*experiment, f"{path}={text}", *needed])
    for name in path.split("."):
        found = getattr(found, name)
    assert (found[0] if isinstance(found, list) else found) == "/home/someone//place x"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/x", "/home/someone/x"),
        ("~", "/home/someone"),
        ("$PLACE/x", "/place/x"),
        ("${PLACE}/x", "/place/x"),
        ("a/$PLACE", "a//place"),
        ("./~/x", "./~/x"),
        ("x/y", "x/y"),
        ("../x", "../x"),
        ("a$", "a$"),
    ],
)
def test_home_folders_and_variables_in_a_path(places, text, expanded):
    assert paths.expanded("runs", text) == expanded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$UNSET/x", "the variable .UNSET is not set; set it"),
        ("${UNSET}", "the variable .{UNSET} is not set; set it"),
        ("~nobody_here/x", "there is no such user; write ./~nobody_here/x"),
        ("", "is empty; give a path"),
        ("a\0b", "is not a path; give a path"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused(places, text, said):
    with pytest.raises(UserError, match=f"runs={re.escape(text)}: {said}"):
        paths.expanded("runs", text)


@pytest.mark.slow
def test_a_path_in_a_file_of_conf_is_expanded_too(tmp_path, monkeypatch):
    shutil.copytree(config.conf_dir(), tmp_path / "conf")
    file = tmp_path / "conf" / "data" / "hippocampus.yaml"
    file.write_text(re.sub(r"roots:\n(  - .*\n)+", "roots:\n  - ~/scans\n  - $PLACE/scans\n", file.read_text()))
    monkeypatch.setattr(config, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PLACE", "/place")
    options = config.load_options("train", ["experiment=hippocampus"])
    assert options.data.roots == ["/home/someone/scans", "/place/scans"]
