"""What the benchmark prints: the report's table of arms and its verdicts."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medaug.comparison.results import Benchmark
from medaug.errors import printable
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.reporting.text import SMOKE, format_difference, format_evidence, format_interval, metric_of


def print_table(benchmark: Benchmark, console: Console) -> None:
    """Print the mean and 95% interval of every arm: a line for all structures together, then one for each."""
    metrics = {name: metric_of(name) for name in benchmark.scores.metrics}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="mean [95% interval over subjects and seeds]")
    table.add_column("arm, class", overflow="fold")
    for metric in metrics.values():
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for arm in benchmark.arms:
        table.add_row(Text(printable(arm), style="bold"))
        for structure in benchmark.structures:
            cells = [
                Text(format_interval(benchmark.mean(arm, structure, name), metric.digits, metric.is_signed))
                for name, metric in metrics.items()
            ]
            table.add_row(Text(f"  {printable(structure)}"), *cells)
    console.print(table)


def print_verdicts(benchmark: Benchmark, console: Console) -> None:
    """Print what the report says first: that a smoke run means nothing, the verdicts, and the trivial baseline."""
    if benchmark.smoke:
        console.print(Text(f"{SMOKE}\n", style="bold"), soft_wrap=True)
    for one in benchmark.headlines:
        line = (
            f"{one.arm} against {one.baseline}, {one.structure} {metric_of(one.metric).title}: "
            f"{format_difference(one)}, {one.verdict} ({format_evidence(one)})"
        )
        console.print(Text(line), soft_wrap=True)
    if benchmark.floor:
        line = f"trivial baseline, {MEAN_FOREGROUND} Dice: {benchmark.floor[MEAN_FOREGROUND]:.3f}"
        console.print(Text(line), soft_wrap=True)
