"""The console script `medaug`: the stages, and `medaug STAGE ...` for `python -m medaug.STAGE ...`."""

from __future__ import annotations

import difflib
import runpy
import sys

from medaug.errors import printable
from medaug.stages import STAGES


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
    lines += ["EXP is the experiment's name. `medaug STAGE --help` lists the keys of a stage.", ""]
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
    else:
        close = difflib.get_close_matches(words[0], STAGES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the stages are {', '.join(STAGES)}"
        sys.stderr.write(f"medaug: error: {printable(words[0])}: no such stage; {hint}\n")
        sys.exit(2)
