"""What the benchmark prints: the arms in one metric and the primary comparison. All the rest is in the report."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medaug.auditing.results import Audit
from medaug.comparison.label_curve import ArmEquivalent
from medaug.comparison.plan import ArmPlan, cheapest_cuts
from medaug.comparison.results import Benchmark, with_labels
from medaug.errors import printable
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.reporting.audited import measure_rows
from medaug.reporting.text import (
    declaration_notes,
    elsewhere_statement,
    format_equivalent,
    format_interval,
    leak_warning,
    metric_of,
    primary_statement,
    warnings_of,
)

_NAME_WIDTH = 24
"""Characters of the first column below which no name is broken."""


def print_table(benchmark: Benchmark, console: Console) -> None:
    """Print mean and difference from the baseline of every arm, in the metric of the primary comparison.

    If a leak cannot be excluded, the first line says so.

    Each arm has a line for all structures together, then one for each of them.
    """
    for warning in leak_warning(benchmark):
        console.print(Text(warning, style="bold"), soft_wrap=True)
    name = _metric(benchmark)
    metric = metric_of(name)
    differences = {(one.arm, one.labelled, one.structure): one for one in benchmark.comparisons if one.metric == name}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="mean [95% interval over subjects and seeds]")
    names = [*(title for title, _, _ in benchmark.rows), *(f"  {name}" for name in benchmark.structures)]
    table.add_column("arm, class", overflow="fold", min_width=min(_NAME_WIDTH, max(map(len, names))))
    for heading in (metric.heading, "against its baseline"):
        table.add_column(heading, justify="right", no_wrap=True)
    for title, arm, labelled in benchmark.rows:
        table.add_row(Text(printable(title), style="bold"))
        for structure in benchmark.structures:
            cells = ["-", ""]
            if benchmark.scores.measures(structure, name):
                mean = benchmark.mean(arm, structure, name, labelled)
                cells[0] = format_interval(mean, metric.digits, metric.is_signed)
            if (arm, labelled, structure) in differences:
                difference = differences[arm, labelled, structure].difference
                cells[1] = format_interval(difference, metric.digits, signed=True)
            table.add_row(Text(f"  {printable(structure)}"), *map(Text, cells))
    console.print(table)


def _metric(benchmark: Benchmark) -> str:
    """The metric of the primary comparison, or the first one if there is no comparison."""
    return benchmark.primary.metric if benchmark.primary is not None else benchmark.scores.metrics[0]


def print_verdicts(benchmark: Benchmark, equivalents: Sequence[ArmEquivalent], console: Console) -> None:
    """Print the main results: warnings (a smoke run, tuning), the primary comparison, and the trivial baseline.

    Args:
        benchmark: results.
        equivalents: for each arm, how many labelled subjects it is worth; only the primary arm's is shown.
        console: the console to print to.
    """
    for warning in warnings_of(benchmark):
        console.print(Text(f"{warning}\n", style="bold"), soft_wrap=True)
    if benchmark.comparisons:
        console.print(Text(" ".join(primary_statement(benchmark)), style="bold"), soft_wrap=True)
        for note in declaration_notes(benchmark):
            console.print(Text(note), soft_wrap=True)
        if benchmark.elsewhere is not None:
            console.print(Text(" ".join(elsewhere_statement(benchmark))), soft_wrap=True)
        console.print()
    primary = benchmark.primary
    for worth in equivalents:
        if primary is not None and (worth.arm, worth.baseline) == (primary.arm, primary.baseline):
            line = (
                f"{with_labels(worth.arm, worth.labelled)} subjects, is worth {format_equivalent(worth)} labelled "
                f"subjects of {worth.baseline} (mean foreground Dice)"
            )
            console.print(Text(line), soft_wrap=True)
    if benchmark.floor:
        line = f"trivial baseline, {MEAN_FOREGROUND} Dice: {benchmark.floor[MEAN_FOREGROUND]:.3f}"
        console.print(Text(line), soft_wrap=True)


def print_audit(audit: Audit, console: Console) -> None:
    """Print every measure of an audit, with what real scans give and the number of images."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="mean [95% interval over subjects]")
    for heading in ("measure", "of"):
        table.add_column(heading, overflow="fold")
    for heading in ("value", "images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for measure in measure_rows(audit):
        for number, (images, value, num) in enumerate(measure["rows"]):
            table.add_row(measure["title"] if number == 0 else "", printable(images), value, str(num))
    console.print(table)


def print_plan(
    plans: Sequence[ArmPlan],
    console: Console,
    workers: int = 1,
    budget: float | None = None,
    question: Sequence[str] = (),
) -> None:
    """Print the jobs of every arm, how many are done, and the time that the others take.

    Args:
        plans: all arms.
        console: the console to print to.
        workers: jobs that run at the same time.
        budget: seconds that may be spent; what can be left out to fit is printed. None: no limit.
        question: the arms of the primary comparison, which are never left out.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="estimated from a few steps, one job after another")
    table.add_column("arm", overflow="fold")
    for heading in ("jobs", "done", "time per job", "time left"):
        table.add_column(heading, justify="right")
    for one in plans:
        each = format_duration(one.seconds) if one.done < one.jobs else "-"
        table.add_row(printable(one.arm), str(one.jobs), str(one.done), each, format_duration(one.seconds_left))
    console.print(table)
    left = sum(one.jobs - one.done for one in plans)
    seconds = sum(one.seconds_left for one in plans)
    side = f", {format_duration(seconds / workers)} with {workers} workers" if workers > 1 else ""
    words = f"{left} of {sum(one.jobs for one in plans)} jobs left: about {format_duration(seconds)}{side}"
    console.print(Text(words), soft_wrap=True)
    if budget is not None:
        console.print(Text(_fit(plans, workers, budget, question)), soft_wrap=True)


def _fit(plans: Sequence[ArmPlan], workers: int, budget: float, question: Sequence[str]) -> str:
    """What to leave out so that a benchmark fits a time."""
    seconds = sum(one.seconds_left for one in plans)
    if seconds <= budget * workers:
        return f"this fits the budget of {format_duration(budget)}"
    kept = question or [one.arm for one in plans[:2]]
    cuts = cheapest_cuts(plans, kept, budget * workers)
    rest = (seconds - sum(one.seconds_left for one in cuts)) / workers
    named = ", ".join(f"{one.arm} ({format_duration(one.seconds_left / workers)})" for one in cuts)
    words = (
        f"to fit the budget of {format_duration(budget)}, leave out {named or 'nothing'}: about {format_duration(rest)}"
    )
    if rest <= budget:
        return words
    return (
        f"{words} remain, which is still too long; fewer draws, more workers or fewer steps (for all arms) shorten it"
    )


def format_duration(seconds: float) -> str:
    """`45 s`, `3 min` or `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
