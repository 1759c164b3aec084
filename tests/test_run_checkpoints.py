"""The checkpoint that later stages use, and what is said where there is none."""

from __future__ import annotations

import pytest

from medaug import runs
from medaug.errors import UserError
from medaug.options import Options


def trained(tmp_path, *names, **options):
    folder = tmp_path / "demo" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("weights")
    return runs.trained_checkpoint(Options(experiment="demo", runs=str(tmp_path), **options)).name


def test_the_best_checkpoint_is_used_if_there_is_one(tmp_path):
    assert trained(tmp_path, "last.ckpt") == "last.ckpt"
    with pytest.raises(UserError, match=r"no samples were scored; .*checkpoint=last"):
        trained(tmp_path, checkpoint="best")
    assert trained(tmp_path, "best.ckpt") == "best.ckpt"
    assert trained(tmp_path, checkpoint="best") == "best.ckpt"
    assert trained(tmp_path, checkpoint="last") == "last.ckpt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "experiment=demo preset=cpu (make train EXP=demo PRESET=cpu)"),
        ({"preset": "smoke", "runs": "my runs"}, "experiment=demo preset=smoke runs='my runs' (make"),
    ],
)
def test_the_command_to_run_first_has_the_preset_and_the_folder(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        runs.trained_checkpoint(Options(experiment="demo", **words))
    assert f"first run medaug train {said}" in str(caught.value)


def test_a_refusal_says_how_to_keep_both_results_only_where_that_works(tmp_path):
    for folder in (tmp_path / "synthetic", tmp_path / "train"):
        runs.claim(folder, {"a": 1}, False)
        (folder / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"overwrite=true replaces it, move the folder elsewhere first to keep it$"):
        runs.claim(tmp_path / "synthetic", {"a": 2}, False)
    with pytest.raises(UserError, match=r"overwrite=true replaces it, runs=DIR keeps both$"):
        runs.claim(tmp_path / "train", {"a": 2}, False, keep="runs=DIR keeps both")


def test_an_absent_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="not trained yet"):
        trained(tmp_path / "empty")
