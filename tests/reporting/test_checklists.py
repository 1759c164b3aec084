"""Checklists are filled from what a run says, and say plainly what it does not say."""

from __future__ import annotations

import csv
from dataclasses import replace

from pages import Page, toy_benchmark

from medaug.auditing.results import Audit, Group
from medaug.evaluation.statistics import Interval
from medaug.pictures import figures
from medaug.reporting.checklists import CHECKLISTS, CLAIM, OPEN, SCORECARD, TRIPOD, filled
from medaug.reporting.facts import Facts
from medaug.reporting.report import write_report


def answers(checklist, facts):
    return {item.number: item.answer(facts) for item in checklist.items}


def test_every_item_of_the_sources_is_there_once():
    assert [item.number for item in CLAIM.items] == [str(number) for number in range(1, 45)]
    assert sorted({int(item.number.rstrip("abcdefg")) for item in TRIPOD.items}) == list(range(1, 28))
    assert len({item.number for item in TRIPOD.items}) == len(TRIPOD.items) == 52
    assert len(SCORECARD.items) == 7 and all(item.number[0] == "C" for item in SCORECARD.items)


def test_answers_hold_the_numbers_of_the_run(tmp_path):
    bench = toy_benchmark(tmp_path).compare([("good", "bad")])
    bench = replace(bench, num_training_subjects=3)
    claim, tripod = (answers(one, Facts(bench)) for one in (CLAIM, TRIPOD))
    assert (
        claim["35"] == tripod["21"] == "3 labelled training subjects, 7 test subjects with 7 scans; 3 synthetic pairs."
    )
    assert "Gain: mean foreground Dice is higher by 0.281 with good than with bad." in claim["32"]
    assert "bad 0.667 [0.667, 0.667]; good 0.947 [0.947, 0.947]" in claim["37"]
    assert claim["33"] == claim["44"] == tripod["17"] == answers(SCORECARD, Facts(bench))["Coverage"] == OPEN
    assert claim["4"] == OPEN, "no comparison was declared"
    far = replace(bench, cohort="far", subjects={f"c{i}": f"s{i}" for i in range(2)})
    assert answers(CLAIM, Facts(replace(bench, elsewhere=far)))["33"].startswith(
        "External test cohort far: 2 subjects."
    )
    audit = Audit(False, {"coverage": [Group("synthetic", Interval(0.8, float("nan"), float("nan"), 6, 6))]})
    assert answers(SCORECARD, Facts(bench, audit))["Coverage"] == "coverage, synthetic: 0.800 (n = 6)."


def test_file_and_report_hold_the_same_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda figure: b"")
    bench = toy_benchmark(tmp_path).compare([("good", "bad")])
    write_report(bench, [], tmp_path, tmp_path / "report.html")
    with (tmp_path / "checklists.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [(one.name, *row) for one, found in filled(Facts(bench)) for row in found]
    tables = Page((tmp_path / "report.html").read_text()).tables
    assert [tuple(row) for row in tables["checklist-1"][1:]] == [row[1:] for row in rows if row[0] == CLAIM.name]
    assert all(f"checklist-{number}" in tables for number in range(1, len(CHECKLISTS) + 1))
