"""Runs a stage from the command line: flags, help, logging, error messages and exit status."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf

from medaug.config import GLOBAL_GROUPS, choices, load_options, nested
from medaug.errors import UserError, printable
from medaug.files import refusal
from medaug.keys import condition_text, keys, shown, values_text
from medaug.options import Options
from medaug.processes import process_count, process_rank, set_umask
from medaug.stages import STAGES

logger = logging.getLogger(__name__)

_OURS = ("medaug", "__main__")  # names of our loggers; a stage run by `python -m` is called __main__


def help_text(stage_name: str) -> str:
    """The help page of a stage: its purpose, needs and result, and every key that it reads."""
    stage = STAGES[stage_name]
    lines = [
        f"medaug {stage.name}: {stage.purpose}",
        "",
        f"  needs   {stage.needs}",
        f"  result  {stage.result}",
        f"  usage   python -m medaug.{stage.name} {stage.example} [key=value ...]",
        "          --cfg prints the resulting configuration and stops, --help prints this page",
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


class _Printable(logging.Formatter):
    """Escapes control characters in messages, so that text from files cannot control the terminal.

    Messages of medaug take one line each.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a message."""
        ours = record.name.split(".")[0] in _OURS
        record.message = printable(record.message, "" if ours else "\n\t")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """The lines of a traceback."""
        return printable(super().formatException(ei), "\n\t")


def set_up_logging() -> None:
    """Log to standard error: medaug's messages from INFO, those of libraries from WARNING."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_Printable("%(message)s"))
    else:
        handler = logging.StreamHandler()  # rich would wrap lines, and with them paths, at column 80
        handler.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logging.INFO if process_rank() == 0 else logging.WARNING
    # A filter, because libraries set the level of their own loggers when they are imported.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in _OURS)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    # Users can do nothing about the warnings of libraries about their future versions.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}"


def run(stage_name: str, body: Callable[[Options], None], arguments: Sequence[str]) -> int:
    """Run a stage and return its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    try:
        if {"--help", "-h"} & set(arguments):
            sys.stdout.write(help_text(stage_name))
            return 0
        if stage_name == "train" and {"--multirun", "-m"} & set(arguments):
            from medaug.sweep import run_sweep

            set_up_logging()
            run_sweep([word for word in arguments if word not in {"--multirun", "-m"}])
            return 0
        words = [word for word in arguments if word != "--cfg"]
        if key := STAGES[stage_name].positional:
            words = [word if "=" in word or word.startswith("-") else f"{key}={word}" for word in words]
        for word in words:
            if re.match(r"[+~]*hydra[./]|(train\.)?objective=", word):
                raise UserError(f"{word}: only sweeps read this key", "start one with `train --multirun`")
        flags = [word for word in words if word.startswith("-")]
        if flags:
            raise UserError(f"{flags[0]}: unknown flag", "options are written key=value, and --help lists them")
        options = load_options(stage_name, words)
        if "--cfg" in arguments:
            stage = STAGES[stage_name]
            nodes = nested(options, [path for path in keys() if stage.accepts(path)])
            sys.stdout.write(OmegaConf.to_yaml(OmegaConf.create(nodes)))
            return 0
        if (count := process_count()) > 1 and not STAGES[stage_name].shared:
            raise UserError(
                f"torchrun or srun started {count} processes, but this stage runs in a single one", "start only one"
            )
        set_up_logging()
        if options.preset == "smoke":
            logger.warning("preset=smoke: only shows that everything runs; the results mean nothing")
        set_umask(options.umask)
        body(options)
    except UserError as error:
        return _refuse(stage_name, error)
    except OSError as error:  # from a library that accessed the disk itself
        refused = refusal(error)
        if refused is None:
            raise
        return _refuse(stage_name, refused)
    except KeyboardInterrupt:
        sys.stderr.write(f"medaug {stage_name}: stopped\n")
        return 130
    return 0


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
