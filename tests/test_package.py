"""The built and installed package is complete, and the Makefile describes its targets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from medaug.viewing.viewer import LICENCE, SCRIPT

ROOT = Path(__file__).parents[1]
TARGETS = (
    "setup demo ingest train generate predict export bundle gallery audit benchmark study status verify "
    "viewer test test-fast fuzz lint format notebooks docs docs-site dist wheelhouse dependencies clean help"
)


def make(*words: str, cwd: Path = ROOT) -> str:
    command = ["make", "--no-print-directory", *words]
    # Tests started by `make test ARGS=...` would hand these words on to the make under test.
    handed_on = {"ARGS", "EXP", "PRESET", "DATA", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
    environment = {key: value for key, value in os.environ.items() if key not in handed_on}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def commands(*words: str) -> list[str]:
    """What make would run for a target, the environment taken as made."""
    lines = make("-n", "-o", ".venv/.installed", *words).splitlines()
    return [line.removeprefix(".venv/bin/python -m medaug.") for line in lines if "-m medaug." in line]


def test_make_alone_prints_every_target():
    listed = re.findall(r"^  ([a-z-]+) +\S", make(), flags=re.MULTILINE)
    assert listed == TARGETS.split()


def test_make_passes_arguments_to_each_stage():
    words = ("EXP=brats", "PRESET=smoke", "DATA=phantom", "ARGS=runs=x overwrite=true")
    chosen = "experiment=brats preset=smoke"
    assert commands("train", *words) == [f"train {chosen} data=phantom runs=x overwrite=true"]
    for stage in ("generate", "predict", "export", "audit", "benchmark"):
        assert commands(stage, *words) == [f"{stage} {chosen} runs=x overwrite=true"]
    assert [line.split() for line in commands("ingest", "ARGS=root=a out=b.json")] == [
        ["ingest", "root=a", "out=b.json"]
    ]
    demo = [line.split() for line in commands("demo")]
    assert demo == [[stage, "experiment=demo"] for stage in ("train", "generate", "audit", "benchmark")]


def test_clean_keeps_results_and_data(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = [tmp_path / name / "x" for name in ("runs", "data", ".venv", "medaug")]
    gone = [
        tmp_path / name / "x" for name in ("dist", "build", ".mypy_cache", "medaug/__pycache__", "tests/__pycache__")
    ]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make("clean", cwd=tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


def test_setup_without_a_new_python_says_what_is_missing(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "touch"):
        (tools / name).symlink_to(shutil.which(name) or name)
    command = [shutil.which("make") or "make", "setup", "PYTHON=python-absent"]
    result = subprocess.run(command, cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


def test_the_constraints_pin_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    assert {re.split(r"[<>=!~]", want)[0].lower() for want in wanted} <= names
    assert pins["torch"] == "2.13.0"
    assert not [pin for pin in pins.values() if "+" in pin]


def test_what_surrounds_the_package_agrees_with_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"] and all(part["attributes"] for part in form["body"])
    for name in ("Dockerfile", "medaug.def"):
        recipe = (ROOT / "container" / name).read_text()
        assert "--no-index --find-links /wheelhouse medaug" in recipe, "nothing is fetched when the container is built"


@pytest.mark.slow
def test_the_wheel_is_complete_and_works_from_any_folder(tmp_path):
    source = tmp_path / "source"
    top = {".venv", ".git", "runs", "data", ".hypothesis"}  # at the top only: medaug/data is code
    shutil.copytree(ROOT, source, ignore=lambda at, _: top if Path(at) == ROOT else {"__pycache__"})
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")

    shipped = {
        f"medaug/{path.relative_to(ROOT).as_posix()}"
        for folder in ("conf", "data_manifests")
        for path in (ROOT / folder).rglob("*.*")
    }
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medaug").rglob("*.py")}
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        content.extractall(tmp_path / "site")
    viewer = {f"medaug/viewing/{path.name}" for path in (ROOT / "medaug/viewing").glob("*.jinja")}
    viewer |= {path.relative_to(ROOT).as_posix() for path in (LICENCE, SCRIPT) if path.exists()}
    assert shipped | modules | viewer | {"medaug/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(archive) as content:
        inside = {name.split("/", 1)[1] for name in content.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "conf/config.yaml", "tests/conftest.py", "Makefile"} <= inside

    code = (
        "import medaug.config as c, medaug.paths as p; o = c.load_options('train', ['experiment=demo']);"
        "print(p.conf_dir(), p.manifests_dir(), o.data.layout)"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    # Without a copy of the repository the demo begins, here with a word that train refuses at once.
    demo = "import sys; sys.argv = ['medaug', 'demo', 'no_such_key=1']; from medaug.cli import main; main()"
    begun = subprocess.run(
        [sys.executable, "-c", demo],
        cwd=elsewhere,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert begun.returncode == 2 and begun.stderr.startswith("medaug train: error: no_such_key")
    assert list(elsewhere.iterdir()) == []
    site = tmp_path / "site" / "medaug"
    assert result.stdout.split() == [str(site / "conf"), str(site / "data_manifests"), "phantom"]
