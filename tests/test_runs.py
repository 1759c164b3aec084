"""Run folders: resume, leave alone, refuse, replace."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medaug import processes, runs
from medaug.errors import UserError
from medaug.options import Options

IDENTITY = {"experiment": "demo", "trainer": {"max_steps": 8, "seed": 0}, "network": {"channels": [8, 16]}}
MORE_STEPS = {**IDENTITY, "trainer": {"max_steps": 16, "seed": 0}}
OTHER_SEED = {**IDENTITY, "trainer": {"max_steps": 16, "seed": 1}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "runs" / "demo" / "train"
    yield folder
    runs._unlock(folder)


def stored(folder: Path):
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


def test_each_stage_has_its_folder():
    options = Options(experiment="demo", runs="/results")
    stages = ("train", "generate", "predict", "audit", "benchmark")
    names = [runs.stage_folder(options, stage).as_posix() for stage in stages]
    assert names == [f"/results/demo/{name}" for name in ("train", "synthetic", "predictions", "audit", "benchmark")]


def test_a_run_is_claimed_resumed_and_then_left_alone(folder, caplog):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    assert stored(folder) == IDENTITY
    assert runs.finished(folder) is None
    (folder / "half.txt").write_text("work")
    assert runs.claim(folder, IDENTITY, overwrite=True)
    assert (folder / "half.txt").read_text() == "work"
    runs.finish(folder, {"loss": 0.5})
    assert runs.finished(folder) == {"loss": 0.5}
    with caplog.at_level(logging.INFO):
        assert not runs.claim(folder, IDENTITY, overwrite=False)
    assert str(folder) in caplog.text and "finished" in caplog.text
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]


def test_values_that_yaml_does_not_distinguish_are_the_same_run(folder):
    values = {
        "rate": 8e-4,
        "tiny": 1e-05,
        "whole": 1.0,
        "text": "1e3",
        "yes": "yes",
        "none": None,
        "empty": {},
    }
    assert runs.claim(folder, {**values, "shape": (1, 2)}, overwrite=False)
    runs.finish(folder, {})
    assert not runs.claim(folder, {**values, "shape": [1, 2]}, overwrite=False)


def test_a_claim_without_results_can_be_replaced(folder):
    """A stage that was refused because data are missing must not block the corrected command."""
    assert runs.claim(folder, IDENTITY, overwrite=False)
    assert runs.claim(folder, OTHER_SEED, overwrite=False)
    assert stored(folder) == OTHER_SEED


def test_another_configuration_is_refused_with_the_difference(folder):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    before = stored(folder)
    with pytest.raises(UserError) as caught:
        runs.claim(folder, {**OTHER_SEED, "extra": True}, overwrite=False, growable=("trainer.max_steps",))
    message = str(caught.value)
    for part in (
        "trainer.max_steps: 8 -> 16",
        "trainer.seed: 0 -> 1",
        'extra: "absent" -> true',
        "overwrite=true",
    ):
        assert part in message
    assert "\n" not in message and "channels" not in message
    assert stored(folder) == before


def test_a_difference_to_a_value_unknown_to_json_is_shown(folder):
    assert runs.claim(folder, {"seed": 0}, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    (folder / "config.yaml").write_text("seed: 2020-01-01\n")  # YAML reads a date
    with pytest.raises(UserError, match='seed: "2020-01-01" -> 0'):
        runs.claim(folder, {"seed": 0}, overwrite=False)


def test_a_long_difference_is_cut_and_counted(folder):
    assert runs.claim(folder, {f"key{i}": 0 for i in range(9)}, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    with pytest.raises(UserError, match="key4: 0 -> 1 and 4 more") as caught:
        runs.claim(folder, {f"key{i}": 1 for i in range(9)}, overwrite=False)
    assert "key5" not in str(caught.value)


def test_a_growable_key_keeps_the_work_and_reopens_the_run(folder):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    runs.finish(folder, {})
    assert runs.claim(folder, MORE_STEPS, overwrite=False, growable=("trainer.max_steps",))
    assert (folder / "last.ckpt").read_text() == "weights"
    assert stored(folder) == MORE_STEPS
    assert runs.finished(folder) is None


def test_overwriting_removes_the_former_result_only(folder):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr" / "a.nii.gz").write_text("x")
    (folder / "a_T1.nii.gz").write_text("x")
    (folder / "provenance.jsonl").write_text('{"files": {"T1": "a_T1.nii.gz"}}\n{"cut')
    neighbour = folder.parent / "synthetic"
    neighbour.mkdir()
    (neighbour / "b.nii.gz").write_text("kept")
    outside = folder.parent / "outside.txt"
    outside.write_text("kept")
    (folder / "pictures").symlink_to(neighbour, target_is_directory=True)
    runs.finish(folder, {})
    assert runs.claim(folder, OTHER_SEED, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".medaug-run", "config.yaml"]
    assert stored(folder) == OTHER_SEED
    assert (neighbour / "b.nii.gz").read_text() == "kept" and outside.read_text() == "kept"


def test_the_folders_of_all_loggers_are_results(folder, install):
    install("quiet", "def quiet(folder): ...", loggers={"quiet_csv": "quiet"})
    assert runs.claim(folder, IDENTITY, overwrite=False)
    for name in ("tensorboard", "csv", "wandb", "mlflow", "quiet_csv"):
        (folder / name).mkdir()
    assert runs.claim(folder, OTHER_SEED, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".medaug-run", "config.yaml"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git/HEAD", "photos/a.nii.gz", "b_T1.nii.gz"])
def test_overwriting_is_refused_if_there_are_other_files(folder, name):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    runs.finish(folder, {})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"holds {name.split('/')[0]}, which medaug did not write; move it away"):
        runs.claim(folder, OTHER_SEED, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("config", ["trainer: {lr: 1}\n", "- a\n- b\n", "text", "", "a: [1"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_foreign_folder_with_its_own_config_is_never_touched(folder, config, overwrite, alone):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    if not alone:
        (folder / "thesis.tex").write_text("years of work")
        (folder / "pictures").mkdir()
        (folder / "pictures" / "a.png").write_text("x")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"runs=DIR") as refused:
        runs.claim(folder, IDENTITY, overwrite=overwrite)
    assert "overwrite=true" not in str(refused.value) and "\n" not in str(refused.value)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_finished_run_that_did_not_record_a_key_is_left_alone_with_a_warning(folder, caplog):
    now = IDENTITY | {"cohort": "abc"}
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "scores.csv").write_text("x")
    with pytest.raises(UserError, match='cohort: "absent" -> "abc"'):  # half of it may be of another cohort
        runs.claim(folder, now, overwrite=False, recorded=("cohort",))
    runs.finish(folder, {})
    assert not runs.claim(folder, now, overwrite=False, recorded=("cohort",))
    assert "an earlier version did not record its cohort, which cannot be checked" in caplog.text
    with pytest.raises(UserError, match="trainer.seed"):
        runs.claim(folder, OTHER_SEED | {"cohort": "abc"}, overwrite=False, recorded=("cohort",))
    assert runs.claim(folder, now, overwrite=True, recorded=("cohort",))
    assert stored(folder) == now
    (folder / "scores.csv").write_text("x")
    with pytest.raises(UserError, match='cohort: "abc" -> "def"'):
        runs.claim(folder, IDENTITY | {"cohort": "def"}, overwrite=False, recorded=("cohort",))


def test_results_edited_after_the_run_finished_are_refused(folder, caplog):
    assert runs.claim(folder, IDENTITY, overwrite=False)
    runs.refuse_edited(folder)  # unfinished, so there is nothing to compare with
    (folder / "jobs").mkdir()
    for name in ("scores.csv", "jobs/a.csv"):
        (folder / name).write_text("0.5")
    runs.finish(folder, {"report": "r"}, [folder / "scores.csv", folder / "jobs" / "a.csv"])
    runs.refuse_edited(folder)
    (folder / "jobs" / "a.csv").write_text("0.9")
    with pytest.raises(UserError, match="jobs/a.csv: was changed since the run was finished"):
        runs.refuse_edited(folder)
    (folder / "jobs" / "a.csv").unlink()
    with pytest.raises(UserError, match="jobs/a.csv: is gone since the run was finished"):
        runs.refuse_edited(folder)
    assert not caplog.messages
    (folder / "finished.json").write_text("{}")
    runs.refuse_edited(folder)
    assert "stored no digests of its results" in caplog.text
    (folder / "finished.json").write_text('{"results": "none"}')
    with pytest.raises(UserError, match="finished.json: its results are not a mapping"):
        runs.refuse_edited(folder)


def test_a_run_without_marker_resumes_and_gets_one(folder):
    """The same configuration is evidence enough; another one is not."""
    assert runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    (folder / ".medaug-run").unlink()
    with pytest.raises(UserError, match="no marker shows that it is medaug's"):
        runs.claim(folder, OTHER_SEED, overwrite=True)
    assert runs.claim(folder, IDENTITY, overwrite=False)
    assert runs.claim(folder, OTHER_SEED, overwrite=True)
    assert not (folder / "last.ckpt").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(folder, overwrite):
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files of something else"):
        runs.claim(folder, IDENTITY, overwrite=overwrite)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert not (folder / "config.yaml").exists()


def test_a_file_where_the_folder_should_be_is_named(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        runs.claim(folder, IDENTITY, overwrite=False)


def hold(folder, claimed, release):
    runs.claim(folder, IDENTITY, overwrite=False)
    claimed.set()
    release.wait(60)


@pytest.mark.slow
def test_two_processes_cannot_work_in_one_folder(folder):
    context = multiprocessing.get_context("spawn")
    claimed, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, claimed, release))
    other.start()
    try:
        assert claimed.wait(60)
        with pytest.raises(UserError, match="another process"):
            runs.claim(folder, IDENTITY, overwrite=False)
    finally:
        release.set()
        other.join(60)
    assert runs.claim(folder, IDENTITY, overwrite=False)


def test_a_refusal_unlocks_the_folder(folder):
    runs.claim(folder, IDENTITY, overwrite=False)
    (folder / "last.ckpt").write_text("weights")
    with pytest.raises(UserError):
        runs.claim(folder, OTHER_SEED, overwrite=False)
    assert folder not in runs._locks


def test_other_ranks_return_the_same_answer_and_write_nothing(folder, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.process_rank() == 1
    assert runs.claim(folder, IDENTITY, overwrite=False)
    assert not folder.exists()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert runs.claim(folder, IDENTITY, overwrite=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.claim(folder, IDENTITY, overwrite=False)  # although rank 0 holds the lock
    monkeypatch.setenv("LOCAL_RANK", "0")
    runs.finish(folder, {"steps": 8})
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not runs.claim(folder, IDENTITY, overwrite=False)
    assert runs.claim(folder, OTHER_SEED, overwrite=True)
    runs.finish(folder, {})
    assert json.loads((folder / "finished.json").read_text()) == {"steps": 8}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # a batch script, without srun
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "5", "WORLD_SIZE": "8"}, (5, 8)),  # srun torchrun
    ],
)
def test_processes_are_counted_as_torchrun_or_srun_started_them(folder, monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (processes.process_rank(), processes.process_count()) == expected


def test_other_ranks_wait_until_rank_0_has_claimed_the_folder(folder, monkeypatch):
    runs.claim(folder, OTHER_SEED, overwrite=False)
    runs._unlock(folder)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="has not begun; start all of them again"):
        runs.join(folder, IDENTITY, patience=0.3)
    begun = threading.Event()
    other = threading.Thread(target=lambda: (runs.join(folder, IDENTITY), begun.set()))
    other.start()
    assert not begun.wait(0.5)
    runs._write_config(folder / "config.yaml", IDENTITY)
    assert begun.wait(30)
    other.join()
    assert (folder / ".lock.rank1").exists()
    runs.finish(folder, {"pairs": 4})
    assert runs.finished(folder) == {"pairs": 4}, "whichever process ends last"


def test_a_folder_in_use_by_another_rank_cannot_be_claimed_for_another_configuration(folder, monkeypatch):
    runs.claim(folder, IDENTITY, overwrite=False)
    runs._unlock(folder)  # the first has ended
    (folder / "provenance.jsonl").write_text("")
    monkeypatch.setenv("RANK", "1")
    runs.join(folder, IDENTITY)
    held = runs._locks.pop(folder.resolve())
    monkeypatch.setenv("RANK", "0")
    for identity, growable in ((OTHER_SEED, ()), (MORE_STEPS, ("trainer.max_steps",))):
        with pytest.raises(UserError, match="another process is at work in it"):
            runs.claim(folder, identity, overwrite=True, growable=growable)
    assert stored(folder) == IDENTITY
    assert runs.claim(folder, IDENTITY, overwrite=False)  # the same work may go on beside it
    runs._unlock(folder)
    held.release()
    assert runs.claim(folder, OTHER_SEED, overwrite=True)


def test_other_ranks_give_up_if_rank_0_has_ended(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    runs.claim(folder, IDENTITY, overwrite=False)
    waits = {"interval": 0.02, "patience": 0.2}
    done = threading.Event()
    timer = threading.Timer(1.0, done.set)
    timer.start()
    processes.wait_for_first(folder, done.is_set, **waits)
    runs._unlock(folder)
    with pytest.raises(UserError, match="the first of 2 processes has ended; start all of them again"):
        processes.wait_for_first(folder, lambda: False, **waits)


def test_without_locks_other_ranks_wait_for_a_limited_time(folder, monkeypatch):
    monkeypatch.setattr(processes, "is_free", lambda path: None)
    with pytest.raises(UserError, match="has ended"):
        processes.wait_for_first(folder, lambda: False, interval=0.02, patience=0.1, blind=0.2)


def test_named_sets_of_pairs_lie_beside_each_other_under_one_training(monkeypatch):
    options = Options(experiment="demo", runs="/results", preset="smoke")
    options.audit.name = "strong"
    stages = ("train", "generate", "predict", "audit", "benchmark", "tuning")
    names = [runs.stage_folder(options, stage).name for stage in stages]
    assert names == ["train", "synthetic-strong", "predictions", "audit-strong", "benchmark-strong", "tuning-strong"]
    assert runs.of_same_pairs(Path("x/tuning-a-b"), "audit") == Path("x/audit-a-b")
    assert runs.of_same_pairs(Path("x/benchmark"), "generate") == Path("x/synthetic")
    assert runs.command("generate", options).split()[4:] == ["name=strong", "runs=/results"]
    assert "name=" not in runs.command("train", options), "a training has no sets"
    for name in ("", "a/b", "..", "-x"):
        options.audit.name = name
        with pytest.raises(UserError, match="is not a name"):
            runs.stage_folder(options, "audit")


def test_other_pairs_are_described_by_how_they_were_made(folder):
    def identity(scale, digest, **more):
        made = {"generate": {"guidance_scale": scale}, "sampler": {"name": "ddim"}}
        return {"audit": {"seed": 0}, "pairs": digest * 64, "made_with": made} | more

    runs.claim(folder, identity(2.0, "a"), overwrite=False)
    (folder / "result").touch()
    with pytest.raises(UserError) as refused:
        runs.claim(folder, identity(3.0, "b", checkpoint="c" * 64), overwrite=False, keep=runs.KEEP_SETS)
    assert str(refused.value).endswith(
        'made with another configuration (pairs: others, checkpoint: "absent" -> "cccc' + "c" * 60 + '", '
        "the pairs have generate.guidance_scale: 2.0 -> 3.0); overwrite=true replaces it, name=NAME keeps both"
    )
    assert runs.claim(folder, identity(3.0, "a"), overwrite=False), "how they were made is no part of the identity"
