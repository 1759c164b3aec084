"""Runs a stage from the command line: flags, help, logging, error messages and exit status."""

from __future__ import annotations

import logging
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from medaug.config import GLOBAL_GROUPS, choices, load_options, nested
from medaug.errors import UserError, printable
from medaug.files import refusal
from medaug.keys import condition_text, keys, shown, values_text
from medaug.logs import log_file, set_up_logging
from medaug.options import Options
from medaug.processes import process_count, set_umask
from medaug.stages import STAGES

logger = logging.getLogger(__name__)

_VERBOSITY = {"-q": -1, "--quiet": -1, "-v": 1, "--verbose": 1}


def help_text(stage_name: str) -> str:
    """The help page of a stage: its purpose, needs and result, and every key that it reads."""
    stage = STAGES[stage_name]
    lines = [
        f"medaug {stage.name}: {stage.purpose}",
        "",
        f"  needs   {stage.needs}",
        f"  result  {stage.result}",
        f"  usage   medaug {stage.name} {stage.example} [key=value ...]",
        "          --cfg prints the resulting configuration and stops, --help prints this page, --version the version;",
        "          -q prints only warnings, -v more than usual",
    ]
    if stage_name == "train":
        lines.append("          --multirun with key=a,b trains every combination, each in a folder below RUNS/sweep")
    former = ""
    for node in (stage.name, *stage.reads):
        names = choices(node)
        rows = [key for path, key in keys().items() if node in {path, path.split(".")[0]}]
        if names and node not in GLOBAL_GROUPS:
            lines += ["", f"{node}={'|'.join(names)}"]
        elif rows and "." in rows[0].path and node.split(".")[0] != former:
            lines.append("")
        former = node.split(".")[0]
        for key in rows:
            word = key.path.removeprefix(f"{stage.name}.")
            if node in GLOBAL_GROUPS:
                described = f"{'|'.join(names)}: {key.help}"
            else:
                described = f"{key.help} ({values_text(key)}; {shown(key.default)})"
                if condition := condition_text(key, stage.name):
                    described += f" [{condition}]"
            lines += [""] if word == "experiment" else []
            lines.append(f"  {word:<28} {described}")
    return "\n".join(lines) + "\n"


def run(stage_name: str, body: Callable[[Options], None], arguments: Sequence[str]) -> int:
    """Run a stage and return its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    try:
        if {"--help", "-h"} & set(arguments):
            sys.stdout.write(help_text(stage_name))
            return 0
        if "--version" in arguments:
            sys.stdout.write(f"medaug {_version()}\n")
            return 0
        verbosity = max((_VERBOSITY[word] for word in arguments if word in _VERBOSITY), key=abs, default=0)
        words = [word for word in arguments if word not in _VERBOSITY]
        if stage_name == "train" and {"--multirun", "-m"} & set(words):
            from medaug.sweep import run_sweep

            set_up_logging(verbosity)
            run_sweep([word for word in words if word not in {"--multirun", "-m"}])
            return 0
        options = _read(stage_name, [word for word in words if word != "--cfg"])
        if "--cfg" in words:
            stage = STAGES[stage_name]
            nodes = nested(options, [path for path in keys() if stage.accepts(path)])
            sys.stdout.write(OmegaConf.to_yaml(OmegaConf.create(nodes)))
            return 0
        _work(stage_name, body, options, words, verbosity)
    except UserError as error:
        return _refuse(stage_name, error)
    except OSError as error:  # from a library that accessed the disk itself
        refused = refusal(error)
        if refused is None:
            raise
        return _refuse(stage_name, refused)
    except KeyboardInterrupt:
        sys.stderr.write(f"medaug {stage_name}: stopped; {STAGES[stage_name].kept}\n")
        return 130
    return 0


def _read(stage_name: str, words: Sequence[str]) -> Options:
    """The options for the words of a command line, without flags that `run` knows.

    Raises:
        UserError: as for `load_options`; an unknown flag, a key of a sweep, or too many processes.
    """
    if key := STAGES[stage_name].positional:
        words = [word if "=" in word or word.startswith("-") else f"{key}={word}" for word in words]
    for word in words:
        if re.match(r"[+~]*hydra[./]|(train\.)?objective=", word):
            raise UserError(f"{word}: only sweeps read this key", "start one with `train --multirun`")
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise UserError(f"{flags[0]}: unknown flag", "options are written key=value, and --help lists them")
    options = load_options(stage_name, words)
    if (count := process_count()) > 1 and not STAGES[stage_name].shared:
        raise UserError(
            f"torchrun or srun started {count} processes, but this stage runs in a single one", "start only one"
        )
    return options


def _work(
    stage_name: str, body: Callable[[Options], None], options: Options, words: Sequence[str], verbosity: int
) -> None:
    """Run the body of a stage, with its log."""
    set_up_logging(verbosity)
    set_umask(options.umask)
    # No log of ingest in a file: the command line may hold a patient's name.
    experiment = Path(options.runs) / options.experiment if options.experiment and stage_name != "ingest" else None
    with log_file(experiment, stage_name) as note:
        note(f"medaug {_version()} on {platform.node()}: medaug {stage_name} {shlex.join(words)}")
        if experiment is not None:
            logger.info("medaug %s: %s of %s", _version(), stage_name, experiment)
        if options.preset == "smoke":
            logger.warning("preset=smoke: only shows that everything runs; the results mean nothing")
        try:
            body(options)
        except BaseException as error:
            note(f"stopped: {type(error).__name__}: {error}")
            raise


def _version() -> str:
    from importlib.metadata import version

    return version("medaug")


def _refuse(stage_name: str, error: UserError) -> int:
    sys.stderr.write(f"medaug {stage_name}: error: {printable(str(error))}\n")
    return 2


def launch(stage_name: str, body: Callable[[Options], None]) -> None:
    """Run a stage on the words of the command line and exit with its status.

    Args:
        stage_name: a key of `medaug.stages.STAGES`.
        body: the function of the stage; it imports large libraries only when it is called, so that `--help` is fast.
    """
    sys.exit(run(stage_name, body, sys.argv[1:]))
