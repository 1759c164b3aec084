"""The launcher: help, exit status, logging, error messages and umask."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml

from medaug import config, launcher
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.isolation import isolated
from medaug.stages import STAGES


@pytest.fixture
def restored_logging():
    root, shown = logging.getLogger(), warnings.formatwarning
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    warnings.formatwarning = shown
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("stage", STAGES)
def test_help_names_every_key_that_the_stage_takes_and_no_other(stage):
    text = launcher.help_text(stage)
    known = config.keys()
    named = {line.split()[0] for line in text.splitlines() if re.match(r"  [a-z_.]+ ", line)}
    named -= {"needs", "result", "usage"}
    reads = {path for path in known if {path, path.split(".")[0]} & set(STAGES[stage].reads)}
    assert named == reads | set(STAGES[stage].own)
    for path in reads:
        assert known[path].help in text


@pytest.mark.slow
def test_cfg_prints_what_would_run(capsys):
    def body(options):
        raise AssertionError("the stage must not run")

    words = ["experiment=demo", "preset=smoke", "seed=5"]
    assert launcher.run("generate", body, [*words, "--cfg"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["generate"] == asdict(config.load_options("generate", words).generate)
    values = {"num": 4, "guidance_scale": 2.0, "guidance_interval": None, "negative_classes": [], "seed": 5, "strip": 0}
    assert {key: shown["generate"][key] for key in values} == values
    assert set(shown) == {path.split(".")[0] for path in STAGES["generate"].reads} | {"generate"}


@pytest.mark.slow
def test_exit_statuses_and_messages(capsys, restored_logging):
    seen = []
    assert launcher.run("generate", seen.append, ["experiment=demo", "num=2"]) == 0
    assert seen[0].generate.num == 2
    assert launcher.run("generate", seen.append, ["experiment=dem"]) == 2
    assert launcher.run("generate", seen.append, ["--dry-run"]) == 2
    assert len(seen) == 1

    def interrupted(options):
        raise KeyboardInterrupt

    def mistaken(options):
        raise UserError("file.nii: is truncated; fetch it again")

    def broken(options):
        raise ZeroDivisionError

    capsys.readouterr()
    assert launcher.run("train", interrupted, ["experiment=demo"]) == 130
    assert launcher.run("train", mistaken, ["experiment=demo"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medaug train: ")]
    assert errors == [
        "medaug train: stopped; " + STAGES["train"].kept,
        "medaug train: error: file.nii: is truncated; fetch it again",
    ]
    with pytest.raises(ZeroDivisionError):
        launcher.run("train", broken, ["experiment=demo"])


@pytest.mark.slow
def test_only_medaug_logs_below_warnings(capsys, restored_logging):
    def body(options):
        logging.getLogger("medaug.room").info("ours")
        logging.getLogger("__main__").info("the stage's")
        library = logging.getLogger("another.package")
        library.setLevel(logging.INFO)
        library.info("theirs")
        library.warning("their warning")
        warnings.warn("said by warnings", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert launcher.run("train", body, ["experiment=demo"]) == 0
    first, *lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert first == f"medaug {version('medaug')}: train of runs/demo"
    assert lines == ["ours", "the stage's", "their warning", "UserWarning: said by warnings"]


@pytest.mark.slow
def test_starting_up_imports_nothing_heavy_and_ingest_no_torch():
    code = (
        "import sys; from medaug import config, launcher, runs, cli\n"
        "config.load_options('train', ['experiment=demo']); launcher.help_text('train'); cli.overview()\n"
        "heavy = {'torch', 'numpy', 'monai', 'lightning', 'scipy', 'matplotlib', 'nibabel', 'SimpleITK'}\n"
        "early = heavy & set(sys.modules)\n"
        "import medaug.ingestion.job\n"
        "sys.exit(', '.join(early | {'torch', 'monai', 'lightning'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stderr.strip() == ""


HOSTILE = "case\x1b[2J\x1b]0;title\x07\r\nmedaug train: error: forged\x00\x9b31m\u202egnp\u2028\udcff"


def test_text_from_files_cannot_control_the_terminal_or_forge_lines(capsys, restored_logging):
    def body(options):
        logging.getLogger("medaug.x").warning("%s: read", HOSTILE)
        logging.getLogger("other").warning("two\nlines\x1b[2J")
        raise UserError(f"{HOSTILE}: is damaged; correct it")

    assert launcher.run("train", body, ["experiment=demo"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 5 and all(c.isprintable() or c == "\n" for c in said)
    assert "case\\x1b[2J" in said and "\\r\\nmedaug train: error: forged" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"), [(28, "the disk is full"), (13, "cannot be written"), (30, "cannot be written")]
)
def test_disk_errors_in_libraries_are_reported_in_one_line(capsys, restored_logging, number, said):
    def body(options):
        raise OSError(number, "reason", "/there/events.out")

    assert launcher.run("train", body, ["experiment=demo"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("medaug train: error: /there/events.out: " + said)

    def defect(options):
        raise OSError("no number")

    with pytest.raises(OSError, match="no number"):
        launcher.run("train", defect, ["experiment=demo"])


@pytest.mark.slow
def test_umask_applies_to_the_process_and_its_workers(tmp_path):
    def body(options):
        write_volume(tmp_path / "scans" / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
        list(isolated(os.makedirs, [str(tmp_path / "cache")], "making", 1))

    before = os.umask(0o022)
    try:
        assert launcher.run("export", body, ["umask=077"]) == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"scans": 0o700, "a.nii.gz": 0o600, "cache": 0o700}


@pytest.mark.parametrize("umask", ["777", "088", "u=rwx", "-1", "1077"])
def test_invalid_umask_is_refused(umask, capsys):
    assert launcher.run("export", lambda options: None, [f"umask={umask}"]) == 2
    assert f"umask={umask}" in capsys.readouterr().err


def test_the_log_of_a_stage_is_kept_in_the_folder_of_the_experiment_once_there_is_one(
    tmp_path, capsys, restored_logging
):
    def body(options):
        log = logging.getLogger("medaug.room")
        log.info("before")
        if options.experiment == "demo":
            (tmp_path / "demo" / "train").mkdir(parents=True, exist_ok=True)
        log.info("after %s", HOSTILE)
        logging.getLogger("other").info("a library's")
        raise UserError("what; remedy")

    for flag in ("-q", "-v"):
        assert launcher.run("train", body, ["experiment=demo", f"runs={tmp_path}", flag]) == 2
        shown = capsys.readouterr().err
        assert ("before" in shown, "a library's" in shown) == (flag == "-v", flag == "-v")
    lines = (tmp_path / "demo" / "logs" / "train.log").read_text().splitlines()
    assert len(lines) == 10, "twice five: command, first line, two of the stage, how it ended"
    for line, said in zip(
        lines, [f"runs={tmp_path}", "train of", "before", "after case", "what; remedy"] * 2, strict=True
    ):
        assert said in line and all(c.isprintable() for c in line)

    assert launcher.run("train", body, ["experiment=brats", f"runs={tmp_path}"]) == 2
    assert not (tmp_path / "brats").exists(), "a command that is refused leaves nothing behind"
    (tmp_path / "demo" / "logs" / "train.log").unlink()
    (tmp_path / "demo" / "logs" / "train.log").mkdir()
    assert launcher.run("train", body, ["experiment=demo", f"runs={tmp_path}"]) == 2, "a log that cannot be written"
