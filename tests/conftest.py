"""Fixtures that several folders of tests share.

The real data, a browser and system tools may be absent on a newcomer's machine. Their tests are skipped there;
where MEDAUG_CI=1 and MEDAUG_DATA are set they fail instead, so that nothing goes untested unnoticed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from browser import Browser

from medaug.viewing.viewer import SCRIPT

# No deadline: the time of an example depends more on the machine's load than on the code.
hypothesis.settings.register_profile("medaug", deadline=None, max_examples=20)
hypothesis.settings.load_profile("medaug")


USERS_OF_THE_RUN = {
    f"tests/end_to_end/test_{name}.py" for name in ("bad_input", "damaged_runs", "fuzz", "kills", "loop", "ranks")
}
"""The files that use the finished run of all stages, which takes a minute to make."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file in one process, as `--dist loadfile` does, and those of `USERS_OF_THE_RUN` too."""
    from xdist.scheduler import LoadFileScheduling

    class OneRun(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "the run" if file in USERS_OF_THE_RUN else str(file)

    return OneRun(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no process works on one alone at the end."""
    files = {item.nodeid.split("::")[0] for item in items if {"demo", "loop"} & set(getattr(item, "fixturenames", ()))}
    users = {file for file in files if file.startswith("tests/end_to_end/")}
    if not users <= USERS_OF_THE_RUN:
        raise pytest.UsageError(f"add to USERS_OF_THE_RUN: {', '.join(sorted(users - USERS_OF_THE_RUN))}")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _absent(reason: str) -> None:
    if os.environ.get("MEDAUG_CI") == "1" and os.environ.get("MEDAUG_DATA"):
        pytest.fail(f"may not be skipped here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def medaug_data() -> Path:
    """The folder of real data, which holds Task04_Hippocampus."""
    folder = os.environ.get("MEDAUG_DATA")
    if not folder:
        _absent("MEDAUG_DATA is not set")
    data = Path(folder or "").resolve()
    if not (data / "Task04_Hippocampus" / "dataset.json").is_file():
        _absent(f"{data} holds no Task04_Hippocampus/dataset.json")
    return data


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium-like browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    _absent("no chromium on this machine")
    raise AssertionError("unreachable")


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    """A browser that shows files, with the viewer of the gallery at hand."""
    if not SCRIPT.is_file():
        _absent("no viewer: run `make viewer`")
    browser = Browser(chromium, tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a system tool (dcm2niix, plastimatch, ...) by its name."""

    def find(name: str) -> str:
        if path := shutil.which(name):
            return path
        _absent(f"no {name} on this machine")
        raise AssertionError("unreachable")

    return find


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a script in an environment that holds nnU-Net; returns the JSON value of the last line that it prints.

    MEDAUG_NNUNET names the environment's Python: it may be one of its own, because the torchvision that nnU-Net brings
    along must be of the same build as torch.
    """
    python = os.environ.get("MEDAUG_NNUNET", sys.executable if importlib.util.find_spec("nnunetv2") else "")
    if not python:
        _absent("nnU-Net is not installed, and MEDAUG_NNUNET names no Python that has it")
    folder = tmp_path_factory.mktemp("nnunet")

    def run(code: str, *arguments: object) -> Any:
        script = folder / "script.py"  # a file, because nnU-Net's check spawns workers
        script.write_text(code)
        places = {name: str(folder) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        command = [python, str(script), *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Error" not in done.stdout and "warning" not in done.stdout.lower(), done.stdout
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a package until the test ends, here and in processes started from here.

    `install("paint", "BLUE = '#00f'", colours={"blue": "BLUE"})` makes a module `paint` of that code whose `BLUE` is an
    entry point `blue` of group `medaug.colours`.
    """
    names = []

    def add(name: str, code: str, **tables: dict[str, str]) -> None:
        folder = tmp_path / f"installed_{name}"
        information = folder / f"{name}-1.0.dist-info"
        information.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for table, entries in tables.items():
            lines += [f"[medaug.{table}]", *(f"{entry} = {name}:{attribute}" for entry, attribute in entries.items())]
        (information / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        names.append(name)

    yield add
    for name in names:
        sys.modules.pop(name, None)
