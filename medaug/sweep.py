"""Sweeps: `train --multirun` gives keys several values; each combination is an ordinary run in its own folder.

Hydra's sweeper chooses the combinations, and its launcher decides where they run. Each job is a separate process with
the command line of a single run, so that its memory, signal handlers and worker processes cannot affect the next job.
The folder of a job depends only on what is swept. So if the same sweep is run again, it resumes unfinished jobs and
leaves finished ones as they are, and all processes of a job use the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medaug.config import load_options, parse_arguments, store_schema
from medaug.errors import UserError
from medaug.files import write_json
from medaug.inputs import read_json
from medaug.options import Options
from medaug.ownership import finished, is_marked, mark
from medaug.paths import conf_dir, stage_folder
from medaug.processes import process_rank, set_umask
from medaug.runs import lock
from medaug.stages import STAGES
from medaug.training import requeue

log = logging.getLogger(__name__)

STAGE = STAGES["train"]  # the only stage with sweeps; later stages work on a single training
_ONE_FOR_ALL = ("runs", "umask", "overwrite", "resume", "objective")
_LONGEST_NAME = 150
# medaug sets the folders itself, swept keys are given as words so that they are checked, and a job requeues itself.
_REFUSED = re.compile(
    r"[+~]*hydra[./](?!launcher\b|sweeper\b)|[+~]*hydra\.sweeper\.(params|search_space|custom_search_space)\b"
    r"|[+~]*hydra\.launcher\.max_num_timeout\b"
)


@dataclass(frozen=True)
class Sweep:
    """The parts of a sweep's command line.

    Attributes:
        fixed: words that all jobs have in common.
        swept: words with several values.
        hydra: words with Hydra's own keys.
        folder: folder of the sweep.
        objective: the number in `finished.json` to optimise.
        umask: see `medaug.processes.set_umask`.
    """

    fixed: tuple[str, ...]
    swept: tuple[str, ...]
    hydra: tuple[str, ...]
    folder: Path
    objective: str
    umask: str | None = None


def parse(arguments: Sequence[str]) -> Sweep:
    """Parse a sweep's command line, and check every value of a job as in a single run.

    Raises:
        UserError: a single run would refuse a value, nothing is swept, or a key cannot be swept.
    """
    hydra = tuple(word for word in arguments if re.match(r"[+~]*hydra[./]", word))
    for word in hydra:
        if _REFUSED.match(word):
            raise UserError(
                f"{word}: cannot be set in a sweep", "of Hydra's keys only hydra/launcher, hydra/sweeper and theirs can"
            )
    optuna = "hydra/sweeper=optuna" in hydra
    fixed: list[str] = []
    values: dict[str, list[str]] = {}
    for word in arguments:
        if word not in hydra:
            override = _swept(word)
            if override is None:
                fixed.append(word)
            else:
                values[word] = _values(word, override, optuna)
    if not values:
        raise UserError("--multirun: nothing is swept", "give a key several values, as in trainer.seed=0,1")
    first = [words[0] for words in values.values()]
    for index, words in enumerate(values.values()):
        for word in words:
            parse_arguments(STAGE, [*fixed, *first[:index], word, *first[index + 1 :]])
    options = load_options(STAGE.name, [*fixed, *first])
    if not optuna and any(_key(word) == "objective" for word in fixed):
        raise UserError(f"objective={options.train.objective}: only hydra/sweeper=optuna reads it", "leave it out")
    return Sweep(
        tuple(fixed), tuple(values), hydra, Path(options.runs) / "sweep", options.train.objective, options.umask
    )


def _key(word: str) -> str:
    """The key in `key=value`, without the prefix that the stage's own keys may have."""
    return word.partition("=")[0].removeprefix(f"{STAGE.name}.")


def _swept(word: str) -> Override | None:
    """The word as Hydra parses it if it has several values; otherwise None."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return None  # unquoted text, or a mistake that the check of single words will report
    return override if override.is_sweep_override() else None


def _values(word: str, override: Override, optuna: bool) -> list[str]:
    """A `key=value` for each value of a swept word, or for both ends of an interval."""
    key, value = override.get_key_element(), override.value()
    if _key(word) in _ONE_FOR_ALL:
        raise UserError(f"{word}: this key must be the same for all jobs of a sweep", "give it one value")
    if isinstance(value, IntervalSweep):
        if not optuna:
            raise UserError(f"{word}: an interval needs hydra/sweeper=optuna", f"or list the values, {key}=a,b")
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{word}: glob patterns cannot be swept", f"list the values, {key}=a,b")
    words = [f"{key}={text}" for text in override.sweep_string_iterator()]
    if optuna and f"{key}=null" in words:
        raise UserError(f"{word}: optuna cannot choose null", "leave it out")
    return words


def job_name(fixed: Sequence[str], words: Sequence[str]) -> str:
    """The name of a job: its swept keys and their values, independent of order and notation."""
    swept = {_key(word) for word in words}
    chosen, values = parse_arguments(STAGE, [*fixed, *words])
    given = {_key(path): value for path, value in (chosen | values).items() if _key(path) in swept}
    name = ",".join(f"{p}={v if isinstance(v, str) else json.dumps(v)}" for p, v in sorted(given.items()))
    safe = re.sub(r"[^\w.,=+\[\]-]", "", name)
    if len(safe) <= _LONGEST_NAME and safe == name.replace(" ", ""):
        return safe
    return f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_job(fixed: Sequence[str], folder: Path, objective: str, config: DictConfig) -> float | None:
    """Run the combination that Hydra has chosen, and record in `job.json` beside its run how it ended.

    Args:
        fixed: words that all jobs have in common.
        folder: folder of the sweep.
        objective: name of the number in `finished.json` to return.
        config: what Hydra composed; not used, because the single run composes its own configuration.

    Returns:
        The number; None if it is unknown, and in all processes of the job but rank 0.

    Raises:
        UserError: the run failed.
        SystemExit: the sweep was stopped by a signal, after the run was saved; or runs have no such number, with a
            message.
    """
    words = list(HydraConfig.get().overrides.task)
    name = job_name(fixed, words)
    runs = folder / name
    shared = [word for word in fixed if _key(word) not in ("objective", "runs")]
    single = [*shared, *words, f"runs={runs}"]
    _note(runs, {"words": words, "status": None})
    status = _wait([sys.executable, "-m", f"medaug.{STAGE.name}", *single])
    if status:
        _note(runs, {"words": words, "status": status})
        raise UserError(f"{name}: failed with status {status}")
    if process_rank() != 0:  # rank 0 writes the summary, and may not have finished
        return None
    # Only the experiment is needed; inside Hydra the whole configuration could not be composed again.
    experiment = parse_arguments(STAGE, single)[0]["experiment"]
    summary = finished(stage_folder(Options(experiment, runs=str(runs)), STAGE.name)) or {}
    numbers = {key: value for key, value in summary.items() if value is None or isinstance(value, int | float)}
    if objective not in numbers:  # then no other job has it either
        sys.exit(f"objective={objective}: a run has no such number; it has {', '.join(numbers)}")
    number = numbers[objective]
    value = None if number is None else float(number)
    _note(runs, {"words": words, "status": 0, objective: value})
    return value


def _note(runs: Path, record: dict[str, object]) -> None:
    if process_rank() == 0:
        write_json(runs / "job.json", record)


def _wait(command: list[str]) -> int:
    """Run a command and return its status; signals are passed on to it, and then end this process after it."""
    received: list[int] = []
    early: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, *requeue.signals())
    # Before the other process starts, because a signal in between would end only this one.
    former = {number: signal.signal(number, pass_on) for number in numbers}
    # In a new session, because otherwise Ctrl-C would reach it twice.
    process = subprocess.Popen(command, start_new_session=True)
    for number in early:
        process.send_signal(number)
    status = process.wait()
    for number, handler in former.items():
        signal.signal(number, handler)
    if received and status:
        sys.exit(128 + received[0])
    return status


def run_sweep(arguments: Sequence[str]) -> None:
    """Run all jobs of a sweep and log how each ended.

    Raises:
        UserError: the command line is wrong and nothing was started, or jobs failed.
    """
    sweep = parse(arguments)
    set_umask(sweep.umask)
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            "--multirun: this process is one of several that torchrun or srun started",
            "a sweep starts its jobs itself (trainer.devices=N, or hydra/launcher=submitit_slurm for nodes)",
        )
    quoted = str(sweep.folder).replace("'", r"\'")
    settings = [
        f"hydra.sweep.dir='{quoted}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    ]
    if "hydra/sweeper=optuna" in sweep.hydra:
        settings.append("hydra.sweeper.max_failure_rate=1.0")  # a failed job does not stop the others
        if "hydra/sweeper/sampler=grid" not in sweep.hydra:
            settings.append("hydra.sweeper.sampler.seed=0")  # so that a repeated sweep has the same jobs
    swept = [
        f"{STAGE.name}.{_key(word)}={word.partition('=')[2]}" if _key(word) in STAGE.own else word
        for word in sweep.swept
    ]
    words = [*swept, *settings, *sweep.hydra]  # the user's words come last and override our settings
    task = functools.partial(run_job, sweep.fixed, sweep.folder, sweep.objective)
    store_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="medaug"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"--multirun: {_describe(error)}") from error
        lock(sweep.folder)
        _take_over(sweep.folder)
        failure: Exception | None = None
        try:
            hydra.multirun("config", task, words, with_log_configuration=False)
        except SystemExit as stop:
            if isinstance(stop.code, str):
                raise UserError(stop.code) from stop
            raise
        except Exception as error:  # sweepers raise the first error of a job
            failure = error
    (sweep.folder / "multirun.yaml").unlink(missing_ok=True)  # written by Hydra, without the words of all jobs
    _report(sweep, failure)


def _take_over(folder: Path) -> None:
    """Mark the folder of sweeps as medaug's, and remove the `job.json` files of earlier sweeps.

    Raises:
        UserError: Hydra would overwrite a file that medaug did not write.
    """
    leftover = folder / "multirun.yaml"
    if leftover.exists() and not is_marked(folder):
        raise UserError(
            "not written by medaug, and the sweep would replace it", "move it or choose runs=DIR", path=leftover
        )
    mark(folder)
    for path in _records(folder):
        path.unlink()


def _records(folder: Path) -> dict[Path, dict[str, Any]]:
    """The `job.json` that sweeps wrote, by path."""
    found = {}
    for path in sorted(folder.glob("*/job.json")):
        with contextlib.suppress(UserError):
            record = read_json(path)
            if {"words", "status"} <= record.keys():
                found[path] = record
    return found


def _describe(error: Exception) -> str:
    """Hydra's message in one line; if a plugin is missing, how to install it instead."""
    message = " ".join(str(error).split())
    for choice, extra in {"joblib": "sweep", "optuna": "sweep", "submitit": "cluster"}.items():
        if "Could not find 'hydra/" in message and choice in message.partition("Available options")[0]:
            return f"{choice} is not installed; pip install 'medaug[{extra}]'"
    return message


def _report(sweep: Sweep, failure: Exception | None) -> None:
    records = {path.parent.name: record for path, record in _records(sweep.folder).items()}
    done = {name: record.get(sweep.objective) for name, record in records.items() if record["status"] == 0}
    for name, value in sorted(done.items(), key=lambda item: (item[1] is None, item[1] or 0.0)):
        log.info("%s: %s %s", sweep.folder / name, sweep.objective, "unknown" if value is None else f"{value:.6g}")
    failed = {name: record["status"] for name, record in records.items() if name not in done}
    reason = " ".join(str(failure).split())
    reasons = [
        f"{name} ({f'did not end: {reason}' if status is None else f'status {status}'})"
        for name, status in failed.items()
    ]
    if failed:
        raise UserError(f"{len(failed)} of {len(records)} jobs failed: {'; '.join(reasons)}") from failure
    if failure is not None:
        raise failure
