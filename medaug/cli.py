"""The console script `medaug`: the stages, `medaug demo`, and completion in shells.

`medaug STAGE ...` and `python -m medaug.STAGE ...` are the same.
"""

from __future__ import annotations

import difflib
import runpy
import sys

from medaug.errors import UserError, printable
from medaug.stages import STAGES

_OTHER = ("demo", "completion")
_DEMO = ("train", "generate", "audit", "benchmark")


def overview() -> str:
    """The text that lists the stages: purpose, needs, result and an example of each."""
    lines = ["medaug: synthetic image-mask pairs for segmentation, and whether they help", ""]
    for stage in STAGES.values():
        lines += [
            f"{stage.name:<11}{stage.purpose}",
            f"{'':<11}needs {stage.needs}; writes {stage.result}",
            f"{'':<11}$ medaug {stage.name} {stage.example}",
            "",
        ]
    lines += [
        "demo       run train, generate, audit and benchmark on phantoms: medaug demo [key=value of train]",
        'completion complete command lines with the tab key: eval "$(medaug completion bash)", or zsh, fish',
        "",
        "EXP is the experiment's name. `medaug STAGE --help` lists the keys of a stage. --version prints the version,",
        "-q prints only warnings, -v more than usual. `python -m medaug.STAGE` is the same as `medaug STAGE`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the stage named by the first word; without words, list the stages.

    The stage runs as with `python -m`, so that launchers can start it again on other devices.
    """
    words = sys.argv[1:]
    if not words or words[0] in {"--help", "-h", "help"}:
        sys.stdout.write(overview())
    elif words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"medaug {version('medaug')}\n")
    elif words[0] in STAGES:
        sys.argv = sys.argv[1:]
        runpy.run_module(f"medaug.{words[0]}", run_name="__main__", alter_sys=True)
    elif words[0] == "demo":
        sys.exit(demo(words[1:]))
    elif words[0] == "completion":
        from medaug.completion import answer

        try:
            sys.stdout.write(answer(words[1:]))
        except UserError as error:
            sys.stderr.write(f"medaug: error: {printable(str(error))}\n")
            sys.exit(2)
    else:
        close = difflib.get_close_matches(words[0], [*STAGES, *_OTHER], n=1)
        hint = f"did you mean {close[0]}?" if close else f"the stages are {', '.join(STAGES)}"
        sys.stderr.write(f"medaug: error: {printable(words[0])}: no such stage; {hint}\n")
        sys.exit(2)


def demo(words: list[str]) -> int:
    """Run the stages of `make demo` one after the other, each in its own process; returns the first failure's status.

    Args:
        words: arguments of `train`; those that later stages need (`runs`) are handed on.
    """
    import subprocess

    shared = [word for word in words if word.partition("=")[0] in {"runs", "umask"}]
    for stage in _DEMO:
        mine = words if stage == "train" else shared
        status = subprocess.call([sys.executable, "-m", f"medaug.{stage}", "experiment=demo", *mine])
        if status:
            return status
    return 0
