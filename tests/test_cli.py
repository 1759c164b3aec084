"""The console script."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from medaug import cli
from medaug.config import load_options
from medaug.stages import STAGES

ROOT = Path(__file__).parents[1]


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["medaug", *words])
    cli.main()


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_lists_what_each_stage_needs_and_writes(monkeypatch, capsys, words):
    call(monkeypatch, *words)
    text = capsys.readouterr().out
    for stage in STAGES.values():
        assert stage.purpose in text and stage.needs in text and stage.result in text


@pytest.mark.slow
def test_the_examples_are_valid_command_lines():
    for name in STAGES:
        assert f"medaug {name} {STAGES[name].example}" in cli.overview()
        load_options(name, STAGES[name].example.split())


def test_the_version_is_the_packages(monkeypatch, capsys):
    import tomllib

    call(monkeypatch, "--version")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"medaug {declared}\n"


def test_an_unknown_stage_is_refused_with_the_nearest(monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, "trian", "experiment=demo")
    assert left.value.code == 2
    assert capsys.readouterr().err == "medaug: error: trian: no such stage; did you mean train?\n"


ANSWERS = ((["--help"], 0, ""), (["no_such_key=1"], 2, "no_such_key"))


@pytest.mark.parametrize("stage", STAGES)
def test_console_script_and_module_give_the_same_output(monkeypatch, capsys, stage):
    for words, status, said in ANSWERS:
        answers = []
        for door in (cli.main, lambda: runpy.run_module(f"medaug.{stage}", run_name="__main__", alter_sys=True)):
            monkeypatch.setattr(sys, "argv", ["medaug", *[stage] * (door is cli.main), *words])
            with pytest.raises(SystemExit) as left:
                door()
            answers.append((left.value.code, *capsys.readouterr()))
        assert answers[0] == answers[1]
        assert answers[0][0] == status and said in answers[0][2]


@pytest.mark.slow
def test_as_processes_they_give_the_same_output_too():
    console = "from medaug.cli import main; main()"
    doors = ([sys.executable, "-m", "medaug.verify"], [sys.executable, "-c", console, "verify"])
    for words, status, said in ANSWERS:
        answers = [subprocess.run([*door, *words], cwd=ROOT, capture_output=True, text=True) for door in doors]
        assert answers[0].returncode == answers[1].returncode == status
        assert answers[0].stdout == answers[1].stdout
        assert answers[0].stderr == answers[1].stderr
        assert said in answers[0].stderr and "Traceback" not in answers[0].stderr
