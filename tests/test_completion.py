"""Completion of command lines, in Python and in bash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from medaug import cli
from medaug.completion import FILES, SCRIPTS, answer, replies
from medaug.config import choices, load_options
from medaug.errors import UserError
from medaug.stages import STAGES


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("medaug tr", ["train"]),
        ("medaug train experiment=hippocampus_f", ["experiment=hippocampus_few"]),
        ("medaug generate experiment=demo guidance_s", ["guidance_scale="]),
        ("medaug train process=edm process=e", ["process=edm"]),
        ("medaug generate screen.rules=[integrity,fa", ["screen.rules=[integrity,faithfulness"]),
        ("medaug train trainer.precision=bf", ["trainer.precision=bf16"]),
        ("medaug train overwrite=", ["overwrite=true", "overwrite=false"]),
        ("medaug ingest root=", [FILES]),
        ("medaug verify runs/", [FILES]),
        ("medaug verify pa", ["path="]),
        ("medaug generate --m", []),
        ("medaug train --m", ["--multirun"]),
        ("medaug completion z", ["zsh"]),
        ("medaug nonsense x", []),
    ],
)
def test_the_last_word_is_completed(line, found):
    assert replies(line) == found


def test_every_completed_choice_is_accepted_and_a_key_is_not_offered_twice():
    assert replies("medaug ") == [*STAGES, "completion", "--version", "--help"]
    assert replies("medaug train experiment=") == [f"experiment={name}" for name in choices("experiment")]
    for reply in replies("medaug train sampler=") + replies("medaug train codec="):
        load_options("train", ["experiment=demo", reply])
    offered = replies("medaug generate experiment=demo num=3 ")
    assert "seed=" in offered and not {"num=", "experiment=", "trainer.seed="} & set(offered)
    with pytest.raises(UserError, match="completion csh: no such shell"):
        answer(["csh"])


def test_bash_completes_whole_words_and_what_follows_the_equals_sign(tmp_path):
    code = "import sys; sys.argv[0] = 'medaug'; from medaug.cli import main; main()"
    (tmp_path / "medaug").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    (tmp_path / "medaug").chmod(0o755)
    asked = (
        "\nfor COMP_LINE in 'medaug tr' 'medaug train preset=sm'; do COMP_POINT=${#COMP_LINE}; COMPREPLY=()"
        '; _medaug 2>/dev/null; echo "${COMPREPLY[*]}"; done'
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", SCRIPTS["bash"] + asked], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines() == ["train", "smoke"]


@pytest.mark.parametrize("shell", filter(shutil.which, SCRIPTS))
def test_the_scripts_are_valid(shell, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medaug", "completion", shell])
    cli.main()
    script = capsys.readouterr().out
    flag = "--no-execute" if shell == "fish" else "-n"
    assert subprocess.run([shell, flag], input=script, text=True, capture_output=True).returncode == 0
