"""Formats numbers and comparisons as text, for the report and the console alike."""

from __future__ import annotations

import math

from medaug.comparison.label_curve import ArmEquivalent
from medaug.comparison.results import Benchmark, Comparison, with_labels
from medaug.evaluation.scores import METRICS, Metric
from medaug.evaluation.statistics import FEWEST_SUBJECTS, NO_EVIDENCE, NO_WORSE, TOO_FEW, Interval

SMOKE = "Smoke run (preset=smoke): it only shows that everything runs. Its numbers and verdicts mean nothing."

TUNING = (
    "For tuning: scored on validation subjects (evaluate=val), to choose settings without looking at test subjects. Do "
    "not report these numbers: whatever was chosen on these subjects scores better on them than on others."
)
LEAK = (
    "A leak cannot be excluded: it was not declared which subjects the generator of {} saw. Test subjects may be among "
    "them, which makes arms with pairs look better than they are."
)


def leak_warning(benchmark: Benchmark) -> list[str]:
    """That a leak cannot be excluded, if so: the first line of report and console."""
    return [] if benchmark.leak_excluded else [LEAK.format(benchmark.pairs_of)]


def warnings_of(benchmark: Benchmark, smoke: bool = False) -> list[str]:
    """What a reader must know before any number.

    Args:
        benchmark: results.
        smoke: whether another stage that the report shows was a smoke run.
    """
    tuning = [TUNING] * (benchmark.evaluated == "val")
    return leak_warning(benchmark) + [SMOKE] * (benchmark.smoke or smoke) + tuning


def metric_of(name: str) -> Metric:
    """The entry of `METRICS`, or a plain one for a metric of an earlier version or of a package not installed now."""
    if name in METRICS:
        return METRICS[name]
    return Metric(name, "", 3, True, "", lambda *_: math.nan)


def format_interval(interval: Interval, digits: int, signed: bool = False) -> str:
    """`0.845 [0.830, 0.860]`, or `0.845 [no interval]` if there was only one subject."""
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    if math.isnan(interval.low):
        return f"{mean} [no interval]"
    return f"{mean} [{low}, {high}]"


def format_difference(comparison: Comparison) -> str:
    """The difference with its interval and unit."""
    metric = metric_of(comparison.metric)
    return " ".join([format_interval(comparison.difference, metric.digits, signed=True), *filter(None, [metric.unit])])


def format_detectable(comparison: Comparison) -> str:
    """The smallest difference that would probably have been found, or a dash."""
    if comparison.tests is None or math.isnan(comparison.tests.detectable):
        return "\N{EN DASH}"
    return f"{comparison.tests.detectable:.{metric_of(comparison.metric).digits}f}"


def format_evidence(comparison: Comparison) -> str:
    """The amount of data behind a comparison, such as `20 subjects, 3 seeds`."""
    return f"{_count(comparison.difference.clusters, 'subject')}, {_count(comparison.num_seeds, 'seed')}"


def format_equivalent(one: ArmEquivalent) -> str:
    """`11.3 [8.9, more than 32]`: a number of labelled subjects with its interval; beyond the curve, its end."""

    def bounded(value: float) -> str:
        if math.isinf(value):
            return f"more than {one.most}"
        return f"fewer than {one.fewest}" if value == 0 else f"{value:.1f}"

    found = one.equivalent
    interval = "no interval" if math.isnan(found.low) else f"{bounded(found.low)}, {bounded(found.high)}"
    return f"{bounded(found.value)} [{interval}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def primary_statement(benchmark: Benchmark) -> list[str]:
    """The result of the primary comparison in words, one sentence per item: the answer, then the evidence."""
    one = benchmark.primary
    if one is None:
        return ["No comparison was made."]
    metric, tests = metric_of(one.metric), one.tests
    unit = f" {metric.unit}" if metric.unit else ""
    arm, difference = with_labels(one.arm, one.labelled), one.difference
    size = f"{abs(difference.mean):.{metric.digits}f}{unit}"
    what = f"{one.structure} {metric.title}"
    if metric.is_signed:
        what = f"the size of the {what}"
    changed = f"{what} is {'higher' if difference.mean > 0 else 'lower'} by {size} with {arm} than with {one.baseline}"
    if one.verdict == TOO_FEW:
        answer = f"Too few subjects for a verdict ({difference.clusters}, at least {FEWEST_SUBJECTS} are needed)"
    elif one.verdict == NO_WORSE and tests is not None:
        answer = f"No worse: a loss of {tests.margin:g}{unit}, the declared margin, is excluded"
    else:
        answer = one.verdict[:1].upper() + one.verdict[1:]
    sentences = [
        f"{answer}: {changed}.",
        f"95% interval {_bounds(difference, metric.digits)}{unit}, {format_evidence(one)}.",
    ]
    if tests is not None and one.verdict in (NO_EVIDENCE, NO_WORSE) and not math.isnan(tests.detectable):
        least = f"{tests.detectable:.{metric.digits}f}{unit}"
        sentences.append(f"A true difference below {least} would probably have been missed with these subjects.")
    if tests is not None and one.verdict == NO_EVIDENCE and (difference.low > 0 or difference.high < 0):
        sentences.append(
            "The interval excludes zero, but training seeds disagree too much for a claim: train more seeds."
        )
    return sentences


def elsewhere_statement(benchmark: Benchmark) -> list[str]:
    """The result on an external test cohort in words, one sentence per item: which cohort, then its answer."""
    one = benchmark.elsewhere
    if one is None:
        return []
    return [f"External test cohort {one.cohort}: {_count(one.num_test_subjects, 'subject')}.", *primary_statement(one)]


def declaration_notes(benchmark: Benchmark) -> list[str]:
    """What a reader must know about when the question was declared, and how often the test subjects were looked at.

    Empty if the question was declared in time, and this is the first look.
    """
    record = benchmark.declared
    if not record:
        late = "No primary comparison was declared before the first job, so this one may have been chosen afterwards."
        return [late, *_looks_note(benchmark)]
    notes = []
    if len(record) > 1:
        first = record[0].primary
        before = f"{first.arm} against {first.baseline}, {first.structure} {metric_of(first.metric).title}"
        margin = "no margin" if first.margin is None else f"margin {first.margin:g}"
        notes.append(f"The primary comparison was changed. Declared first: {before}, {margin}.")
    if record[-1].jobs_done:
        notes.append(f"It was declared when {_count(record[-1].jobs_done, 'job')} had been scored already.")
    return notes + _looks_note(benchmark)


def _looks_note(benchmark: Benchmark) -> list[str]:
    if benchmark.looks is None or benchmark.looks < 2:
        return []
    return [
        f"{benchmark.looks} configurations were scored on these test subjects so far. The best of several looks better "
        "than it is; choose settings on validation subjects (evaluate=val)."
    ]


def _bounds(interval: Interval, digits: int) -> str:
    if math.isnan(interval.low):
        return "unknown"
    return f"{interval.low:+.{digits}f} to {interval.high:+.{digits}f}"
