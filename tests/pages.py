"""A benchmark with known numbers, and a parser for its report."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from medaug.cohort.schema import LabelSchema
from medaug.comparison.job import Job
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.evaluation.scores import segmentation_scores

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


class Page(HTMLParser):
    """Every table as rows of cell texts, by id; the text; the addresses of pictures; the tags in use."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.sources, self.tags, self.text, self._cell = {}, [], set(), "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag == "table":
            self._table = self.tables.setdefault(attrs.get("id"), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in {"td", "th"}:
            self._table[-1].append("")
            self._cell = self._table[-1]
        elif tag == "img":
            self.sources.append(attrs["src"])

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell[-1] += data.strip()


def toy_benchmark(folder) -> Benchmark:
    """Arm `good` misses one voxel of each lesion of ten, `bad` five; seven subjects."""
    values = {}
    for arm, missed in (("bad", 5), ("good", 1)):
        for i in range(7):
            truth = np.zeros((6, 6, 6), np.uint8)
            truth[0, :2, :5] = 1
            prediction = truth.copy()
            prediction[0, 0, :missed] = 0
            for structure, metric, value in segmentation_scores(prediction, truth, (10, 10, 10), SCHEMA):
                values[Job(arm, 0), f"c{i}", structure, metric] = value
    scores = Scores(values, ("lesion",), folder / "scores.csv", "again")
    subjects = {f"c{i}": f"s{i}" for i in range(7)}
    floor = {"mean foreground": 0.0, "lesion": 0.0}
    return Benchmark("toy", False, False, ("bad", "good"), (0,), 1, subjects, floor, 3, 3, 0, {}, scores)
