"""Sweeps: what they refuse before anything starts, the folders of their jobs, and the final report."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medaug import config, launcher, runs, sweep
from medaug.errors import UserError

DEMO = ("experiment=demo", "preset=smoke")
OPTUNA = "hydra/sweeper=optuna"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, of a process that is alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    runs._unlock(Path("runs/sweep"))


@pytest.fixture
def trained(home, monkeypatch) -> list[list[str]]:
    """Words of the jobs, which end at once: by the square of their rate's distance to 0.3, above 1 with status 2."""
    started: list[list[str]] = []

    def wait(command: list[str]) -> int:
        assert command[:3] == [sys.executable, "-m", "medaug.train"]
        started.append(command[3:])
        options = config.parse_arguments(sweep.STAGE, command[3:])[1]
        if options["trainer.learning_rate"] > 1:
            return 2
        folder = Path(options["runs"]) / "demo" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        loss = (options["trainer.learning_rate"] - 0.3) ** 2
        (folder / "finished.json").write_text(json.dumps({"validation_loss": loss, "best_score": -loss}))
        return 0

    monkeypatch.setattr(sweep, "_wait", wait)
    return started


@pytest.mark.parametrize(
    "words, parts",
    [
        (("trainer.learnig_rate=1e-3,2e-3",), ("learnig_rate", "did you mean trainer.learning_rate")),
        (("trainer.learning_rate=1e-3,fast",), ("trainer.learning_rate=fast: expected number",)),
        (("trainer.seed=0,1", "trainer.max_steps=ten"), ("trainer.max_steps=ten: expected integer",)),
        (("trainer.seed=range(0,2,0.5)",), ("trainer.seed=0.0: expected integer",)),
        (("codec=haar,harr",), ("codec=harr", "did you mean haar?")),
        (("codec=glob(*)",), ("codec=glob(*): glob patterns cannot be swept",)),
        (("sampler=ddim,ddpm",), ("sampler is read by `generate`",)),
        (("trainer.seed=0",), ("nothing is swept", "trainer.seed=0,1")),
        (("runs=a,b",), ("runs=a,b: this key must be the same for all jobs of a sweep",)),
        (("trainer.learning_rate=interval(1e-4,1e-2)",), ("needs hydra/sweeper=optuna", "trainer.learning_rate=a,b")),
        (("trainer.seed=interval(0.5,3)", OPTUNA), ("trainer.seed=0.5: expected integer",)),
        (("data.max_side=32,null", OPTUNA), ("optuna cannot choose null",)),
        (("trainer.seed=0,1", "objective=step"), ("objective=step: only hydra/sweeper=optuna reads it",)),
        (("trainer.seed=0,1", "hydra/launcher=jobli"), ("hydra/launcher/jobli",)),
        (("trainer.seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_job=2"), ("hydra.launcher.n_job",)),
        (("trainer.seed=0,1", "hydra.sweep.dir=x"), ("hydra.sweep.dir=x: cannot be set in a sweep",)),
        (("trainer.seed=0,1", OPTUNA, "+hydra.sweeper.params.x=1"), ("hydra.sweeper.params",)),
        (("trainer.seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=3"), ("max_num_tim",)),
    ],
)
def test_a_mistake_is_refused_before_any_job_starts(trained, words, parts):
    with pytest.raises(UserError) as caught:
        sweep.run_sweep([*DEMO, *words])
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message
    assert not trained and not Path("runs").exists()


@pytest.mark.parametrize("variable", ["RANK", "SLURM_STEP_NUM_TASKS"])
def test_a_sweep_is_refused_in_one_of_several_processes(trained, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match="one of several that torchrun or srun started"):
        sweep.run_sweep([*DEMO, "trainer.seed=0,1"])
    assert not trained


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "objective=step"])
def test_a_single_run_refuses_sweep_arguments(capsys, word):
    assert launcher.run("train", lambda options: None, [*DEMO, word]) == 2
    assert f"{word}: only sweeps read this key" in capsys.readouterr().err


def test_other_stages_have_no_sweeps(capsys):
    assert launcher.run("generate", lambda options: None, ["--multirun", *DEMO, "num=1,2"]) == 2
    assert "--multirun: unknown flag" in capsys.readouterr().err


def test_a_jobs_folder_depends_only_on_what_is_swept():
    name = sweep.job_name(DEMO, ["trainer.seed=1", "trainer.learning_rate=1e-3"])
    assert name == "trainer.learning_rate=0.001,trainer.seed=1"
    assert name == sweep.job_name((*DEMO, "trainer.max_steps=9"), ["trainer.learning_rate=0.0010", "trainer.seed=1"])
    assert sweep.job_name(DEMO, ["network.channels=[8, 16]", "codec=haar"]) == "codec=haar,network.channels=[8,16]"


def test_long_and_strange_values_give_different_folders_of_one_part():
    paths = [f"/data/{'long/' * 60}{end}" for end in "ab"] + ["/data/a b", "/data/ab", "/data/a:b"]
    names = {sweep.job_name(DEMO, [f"data.roots=['{path}']"]) for path in paths}
    assert len(names) == len(paths)
    assert all(len(name) < 200 and "/" not in name for name in names)


@pytest.mark.slow
def test_every_combination_is_a_separate_run(trained, caplog):
    with caplog.at_level(logging.INFO):
        sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.5", "logger=csv", "codec=haar,identity"])
    names = [f"codec={codec},trainer.learning_rate={rate}" for rate in (0.1, 0.5) for codec in ("haar", "identity")]
    assert {words[-1] for words in trained} == {f"runs=runs/sweep/{name}" for name in names}
    for words in trained:
        options = config.load_options("train", words)
        assert options.runs.endswith(
            f"codec={options.codec.name},trainer.learning_rate={options.trainer.learning_rate}"
        )
        assert (options.experiment, options.preset, options.logger.name) == ("demo", "smoke", "csv")
    assert sorted(path.name for path in Path("runs/sweep").iterdir() if path.is_dir()) == sorted(names)
    assert [path.name for path in Path().iterdir()] == ["runs"], "Hydra leaves nothing beside it"
    assert all(f"{name}: validation_loss 0.04" in caplog.text for name in names)


@pytest.mark.slow
def test_a_failing_job_is_named_and_the_others_continue(trained):
    with pytest.raises(UserError) as caught:
        sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,13,0.5"])
    assert str(caught.value) == "1 of 3 jobs failed: trainer.learning_rate=13.0 (status 2)"
    assert len(trained) == 3
    sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.5"])  # the failure of an earlier sweep is no longer mentioned


@pytest.mark.slow
def test_optuna_minimises_what_the_jobs_report_and_finds_the_same_jobs_again(trained):
    words = [*DEMO, "trainer.learning_rate=interval(0.001,1.0)", OPTUNA, "hydra.sweeper.n_trials=3"]
    sweep.run_sweep(words)
    first, best = list(trained), OmegaConf.load("runs/sweep/optimization_results.yaml")
    rates = [config.parse_arguments(sweep.STAGE, one)[1]["trainer.learning_rate"] for one in first]
    assert len(set(rates)) == 3 and all(0 <= rate <= 1 for rate in rates)
    nearest = min(rates, key=lambda rate: abs(rate - 0.3))
    assert best.best_params["trainer.learning_rate"] == nearest
    assert best.best_value == pytest.approx((nearest - 0.3) ** 2)
    sweep.run_sweep(words)
    assert trained[3:] == first


@pytest.mark.slow
def test_optuna_takes_another_objective_and_its_direction(trained):
    words = ("objective=best_score", "hydra.sweeper.direction=maximize", "hydra/sweeper/sampler=grid")
    sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2,0.9", OPTUNA, *words])
    best = OmegaConf.load("runs/sweep/optimization_results.yaml")
    assert best.best_params == {"trainer.learning_rate": 0.2}
    assert best.best_value == pytest.approx(-0.01)


@pytest.mark.slow
def test_an_objective_that_no_run_has_ends_the_search_at_its_first_job(trained):
    with pytest.raises(UserError, match="objective=dice: a run has no such number; it has validation_loss, best_score"):
        sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2", OPTUNA, "objective=dice", "hydra.sweeper.n_jobs=1"])
    assert len(trained) == 1


@pytest.mark.slow
def test_other_ranks_of_a_job_do_not_read_the_summary(home, monkeypatch):
    monkeypatch.setattr(sweep, "_wait", lambda command: 0)
    monkeypatch.setenv("SLURM_PROCID", "1")
    sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2"])
    assert not list(Path("runs/sweep").glob("*/job.json"))


@pytest.mark.slow
def test_results_may_be_in_a_folder_of_any_name(trained):
    sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2", "runs='it\\'s a folder'"])
    assert Path("it's a folder/sweep/trainer.learning_rate=0.1/demo/train/finished.json").exists()


@pytest.mark.slow
def test_optuna_continues_after_a_failing_job(trained):
    with pytest.raises(UserError) as caught:
        words = (
            "trainer.learning_rate=interval(0.001,2.0)",
            "hydra.sweeper.n_trials=4",
            "hydra.sweeper.sampler.seed=1",
        )
        sweep.run_sweep([*DEMO, *words, OPTUNA])
    rates = [config.parse_arguments(sweep.STAGE, one)[1]["trainer.learning_rate"] for one in trained]
    failed = sorted(f"trainer.learning_rate={rate} (status 2)" for rate in rates if rate > 1)
    assert len(rates) == 4 and 0 < len(failed) < 4
    assert str(caught.value) == f"{len(failed)} of 4 jobs failed: {'; '.join(failed)}"
    best = OmegaConf.load("runs/sweep/optimization_results.yaml").best_params["trainer.learning_rate"]
    assert best == min((rate for rate in rates if rate <= 1), key=lambda rate: abs(rate - 0.3))


def test_a_missing_plugin_is_named_with_its_extra():
    error = Exception("In 'hydra/config': Could not find 'hydra/launcher/submitit_slurm'\n\nAvailable options: basic")
    assert sweep._describe(error) == "submitit is not installed; pip install 'medaug[cluster]'"


@pytest.mark.slow
def test_a_signal_reaches_the_job_and_then_ends_the_sweep(home):
    job = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); print(flush=True); time.sleep(60)"
    code = f"import sys; from medaug.sweep import _wait; _wait([sys.executable, '-c', {job!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_signal_while_the_job_is_started_reaches_it_too(home):
    code = (
        "import os, signal, subprocess, sys; from medaug import sweep\n"
        "class Slow(subprocess.Popen):\n"
        "    def __init__(self, *words, **options):\n"
        "        super().__init__(*words, **options); os.kill(os.getpid(), signal.SIGTERM)\n"
        "sweep.subprocess.Popen = Slow\n"
        "sweep._wait([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 128 + signal.SIGTERM


SMALL = (
    *DEMO,
    "logger=csv",
    "data.phantom_subjects=5",
    "data.max_side=16",
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "trainer.precision=fp32",
    "trainer.max_steps=2",
)


def train(home: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    command = [sys.executable, "-m", "medaug.train", *SMALL, *words]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(home: Path) -> dict[int, float]:
    folders = {seed: home / "runs" / "sweep" / f"trainer.seed={seed}" / "demo" / "train" for seed in (0, 1)}
    return {seed: json.loads((path / "finished.json").read_text())["validation_loss"] for seed, path in folders.items()}


@pytest.mark.slow
def test_real_trainings_by_joblib_then_found_finished_by_optuna_and_by_submitit(home):
    seeds = ("--multirun", "trainer.seed=0,1")
    train(home, *seeds, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    found = losses(home)
    assert found[0] != found[1]

    said = train(home, *seeds, OPTUNA, "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2")
    assert said.count("finished already") == 2
    best = OmegaConf.load(home / "runs/sweep/optimization_results.yaml")
    assert best.best_value == min(found.values()) and found[best.best_params["trainer.seed"]] == best.best_value

    said = train(home, *seeds, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert f"trainer.seed=0: validation_loss {found[0]:.6g}" in said
    logs = (home / "runs/sweep/.submitit").rglob("*_log.err")
    assert sum("finished already" in path.read_text() for path in logs) == 2
    assert losses(home) == found
    assert sorted(path.name for path in home.iterdir()) == ["runs"]


@pytest.mark.slow
def test_foreign_files_in_the_folder_of_sweeps_are_kept(home, trained):
    folder = home / "runs" / "sweep"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "job.json").write_text('{"queue": "long"}')
    (folder / "multirun.yaml").write_text("mine")
    with pytest.raises(UserError, match="multirun.yaml: not written by medaug"):
        sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2"])
    assert (folder / "multirun.yaml").read_text() == "mine" and not trained
    (folder / "multirun.yaml").unlink()
    sweep.run_sweep([*DEMO, "trainer.learning_rate=0.1,0.2"])
    assert (folder / "mine" / "job.json").read_text() == '{"queue": "long"}' and len(trained) == 2
