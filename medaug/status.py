"""Stage: show what is finished, running, stopped and left in every experiment of a folder, and the time it will take.

python -m medaug.status [runs=DIR]
"""

from __future__ import annotations

from pathlib import Path

from medaug.launcher import launch
from medaug.options import Options


def main(options: Options) -> None:
    """Print a line for every stage of every experiment below the folder of runs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from medaug.errors import printable
    from medaug.progress import duration
    from medaug.run_status import standings

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("experiment", "stage", "state", "done", "time left"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("done", "time left") else "left")
    former = ""
    for one in standings(Path(options.runs)):
        counted = "" if one.done is None else f"{one.done} of {one.total or '?'} {one.unit}"
        left = "" if one.seconds_left is None else f"about {duration(one.seconds_left)}"
        shown = "" if one.experiment == former else printable(one.experiment)
        table.add_row(shown, printable(one.stage), one.state, counted, left)
        former = one.experiment
    Console().print(table)


if __name__ == "__main__":
    launch("status", main)
