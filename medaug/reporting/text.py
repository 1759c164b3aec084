"""Formats numbers and comparisons as text, for the report and the console alike."""

from __future__ import annotations

import math

from medaug.comparison.results import Comparison
from medaug.evaluation.scores import METRICS, Metric
from medaug.evaluation.statistics import Interval

SMOKE = "Smoke run (preset=smoke): it only shows that everything runs. Its numbers and verdicts mean nothing."


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


def format_evidence(comparison: Comparison) -> str:
    """What a comparison is based on, such as `20 subjects, 3 seeds`."""
    return f"{_count(comparison.difference.clusters, 'subject')}, {_count(comparison.num_seeds, 'seed')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
