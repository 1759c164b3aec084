"""The report's numbers against pandas, and its behaviour with unusual input."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pages import Page, toy_benchmark
from rich.console import Console

from medaug.comparison.primary import Declared, Primary
from medaug.comparison.results import Benchmark
from medaug.errors import UserError
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.statistics import Interval, paired_comparison
from medaug.pictures import figures
from medaug.pictures.figures import guidance_plot, save_figure
from medaug.reporting.console import print_table, print_verdicts
from medaug.reporting.report import write_report
from medaug.reporting.text import declaration_notes, format_interval, primary_statement
from medaug.screening.results import RuleResult, ScreeningResult

ARMS = ["real", "real+classical", "real+classical+synthetic"]
CLASSES = ["Anterior", "Posterior"]
NUMBERS = ["mean_difference", "low", "high", "num_subjects", "num_seeds"]
COLUMNS = ["arm", "baseline", "class", "metric", *NUMBERS, "verdict"]


@pytest.fixture
def drawn():
    """For tests whose report needs its plots."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, request):
    """Most tests read only the text of the report, and its plots take most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "png", lambda figure: b"")


def _write_run(run, arms=ARMS, classes=CLASSES, phantom=False, seeds=(0, 1, 2), num_cases=8):
    """A benchmark folder with random scores; two cases per subject."""
    folder = run / "benchmark"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases = [f"case_{i}" for i in range(num_cases)]
    rows = [
        (arm, seed, case, name, metric, rng.uniform(0.6, 0.9) * (1 if metric == "dice" else 10))
        for arm in arms
        for seed in seeds
        for case in cases
        for name in classes
        for metric in ("dice", "hd95")
    ]
    _write_csv(folder / "scores.csv", ["arm", "seed", "case", "class", "metric", "value"], rows)
    comparisons = [
        (
            arms[-1],
            arms[0],
            MEAN_FOREGROUND,
            "dice",
            0.0123,
            -0.0031,
            0.0274,
            20,
            3,
            "no evidence of a difference",
        ),
        (arms[-1], arms[0], MEAN_FOREGROUND, "hd95", -0.5, -0.8, -0.2, 20, 1, "gain"),
        (arms[-1], arms[0], classes[0], "dice", -0.02, -0.03, -0.01, 20, 3, "harm"),
    ]
    _write_csv(folder / "comparison.csv", COLUMNS, comparisons)
    summary = {
        "experiment": "hippocampus",
        "phantom": phantom,
        "arms": arms,
        "seeds": list(seeds),
        "steps": 600,
        "num_test_subjects": num_cases // 2,
        "num_test_cases": num_cases,
        "subjects": {case: f"s{i // 2}" for i, case in enumerate(cases)},
        "classes": classes,
        "config": {"segmenter": {"steps": 600}},
        "num_synthetic": 64,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _write_csv(path, columns, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def _render(folder):
    write_report(Benchmark.load(folder), [], folder.parent, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_tables_numbers_are_those_of_scores_csv(tmp_path):
    folder = _write_run(tmp_path)
    rows = Page(_render(folder)).tables["arm-table"][1:]
    scores = pd.read_csv(folder / "scores.csv")
    means = scores.groupby(["arm", "class", "metric"]).value.mean()
    overall = scores.groupby(["arm", "metric"]).value.mean()
    assert len(rows) == len(ARMS) * (1 + len(CLASSES))
    for place, (name, dice, hd95) in enumerate(row[-3:] for row in rows):
        arm = ARMS[place // 3]
        for text, metric, digits in ((dice, "dice", 3), (hd95, "hd95", 2)):
            mean = overall[arm, metric] if name == MEAN_FOREGROUND else means[arm, name, metric]
            assert text.startswith(f"{mean:.{digits}f} [")
            low, high = map(float, re.findall(r"[\d.]+", text)[1:])
            assert low <= round(mean, digits) <= high
    assert [row[-3] for row in rows[:3]] == [MEAN_FOREGROUND, *CLASSES]


def test_intervals_of_the_table_resample_seeds_and_subjects(tmp_path):
    folder = _write_run(tmp_path)
    scores = pd.read_csv(folder / "scores.csv").query("arm == 'real' and metric == 'dice'")
    table = scores.groupby(["seed", "case"]).value.mean().unstack()
    subjects = [f"s{int(case.split('_')[1]) // 2}" for case in table.columns]
    expected = paired_comparison(table.to_numpy(), np.zeros(table.shape), subjects, seed=0)
    found = Benchmark.load(folder).mean("real", MEAN_FOREGROUND, "dice")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.clusters == 4


def test_the_printed_table_equals_the_reports_even_on_a_narrow_terminal(tmp_path):
    folder = _write_run(tmp_path, arms=["[red]real[/red]", "b"])
    page = Page(_render(folder))
    console = Console(file=io.StringIO(), width=80)
    print_table(Benchmark.load(folder), console)
    printed = console.file.getvalue()
    pattern = r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]"
    cells = [row[-2] for row in page.tables["arm-table"][1:]]
    assert re.findall(pattern, printed) == cells and len(cells) == 6
    assert "HD95" not in printed  # one metric; the others are in the report
    assert "[red]real[/red]" in printed


def test_the_verdict_is_given_in_words(tmp_path):
    text = " ".join(Page(_render(_write_run(tmp_path))).text.split())
    assert (
        "real+classical+synthetic against real, mean foreground Dice: "
        "+0.012 [-0.003, +0.027], no evidence of a difference (20 subjects, 3 seeds)"
    ) in text
    assert "mean foreground HD95: -0.50 [-0.80, -0.20] mm, gain (20 subjects, 1 seed)" in text
    assert "not for clinical use" in text and "600 per segmenter" in text and '"steps": 600' in text


@pytest.mark.slow
@pytest.mark.parametrize("smoke", [True, False])
def test_a_smoke_run_starts_with_a_warning(tmp_path, smoke):
    folder = _write_run(tmp_path)
    change(folder / "summary.json", smoke=smoke)
    text, console = Page(_render(folder)).text, Console(file=io.StringIO(), width=80)
    print_verdicts(Benchmark.load(folder), [], console)
    for shown in (text, console.file.getvalue()):
        assert ("Its numbers and verdicts mean nothing" in shown) is smoke
        assert not smoke or shown.index("Smoke run") < shown.index("mean foreground")


@pytest.mark.slow
def test_the_trivial_baseline_is_stated(tmp_path):
    folder = _write_run(tmp_path)
    assert "trivial baseline, a mask" not in Page(_render(folder)).text
    change(folder / "summary.json", floor={MEAN_FOREGROUND: 0.25, "Anterior": 0.2, "Posterior": 0.3})
    text, console = " ".join(Page(_render(folder)).text.split()), Console(file=io.StringIO(), width=80)
    print_verdicts(Benchmark.load(folder), [], console)
    assert "reaches a Dice of 0.250 (mean foreground), 0.200 (Anterior), 0.300 (Posterior)." in text
    assert "trivial baseline, mean foreground Dice: 0.250" in console.file.getvalue()
    assert "against real, mean foreground HD95: -0.50 [-0.80, -0.20] mm, gain" in text


def test_a_judge_that_has_learned_nothing_gives_no_ratio(tmp_path):
    folder = _write_run(tmp_path)
    (tmp_path / "audit").mkdir()
    interval = {"mean": 0.008, "low": 0.007, "high": 0.009, "n": 12}
    audit = {"real_validation": interval, "synthetic": interval, "ratio": None, "ratio_low": None, "floor": 0.31}
    (tmp_path / "audit" / "faithfulness.json").write_text(json.dumps(audit))
    text = " ".join(Page(_render(folder)).text.split())
    assert "No ratio: the judge's Dice on real validation images is not above 0.310" in text
    assert "of the judge's Dice" not in text


@pytest.mark.parametrize("phantom", [True, False])
def test_a_phantom_cohort_is_labelled(tmp_path, phantom):
    assert ("Phantom cohort." in _render(_write_run(tmp_path, phantom=phantom))) is phantom


@pytest.mark.slow
def test_the_screening_of_the_pairs_is_one_table(tmp_path):
    folder = _write_run(tmp_path)
    assert "screening-table" not in Page(_render(folder)).tables
    rules = {"integrity": RuleResult(40, 1, {}), "gone": RuleResult(40, 6, {"x": 6})}
    (tmp_path / "synthetic").mkdir(exist_ok=True)
    ScreeningResult(34, 33, 40, 34, [3], rules, {}, ["pair"]).save(tmp_path / "synthetic")
    page = Page(_render(folder))
    rows = page.tables["screening-table"][1:]
    assert [[row[0], *row[2:]] for row in rows] == [["integrity", "1 of 40", "2.5%"], ["gone", "6 of 40", "15.0%"]]
    assert "34 of 40 generated images passed" in " ".join(page.text.split())


@pytest.mark.slow
def test_the_file_is_self_contained(tmp_path, drawn):
    folder = _write_run(tmp_path)
    names = [
        "audit/b.png",
        "synthetic/contact_sheet.png",
        *(f"train/pictures/step-{s}.png" for s in range(0, 1100, 100)),
    ]
    picture = figures.png(guidance_plot({0: Interval(0.5, 0.4, 0.6, 9, 9), 1: Interval(0.6, 0.5, 0.7, 9, 9)}))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    html = _render(folder)
    page = Page(html)
    assert len(page.sources) == 2 + 2 + 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"} and "http" not in html
    shown = re.findall(r"During training: step (\d+)</figcaption>", html)
    assert shown[0] == "0" and shown[-1] == "1000"  # ordered as numbers, up to the last


@pytest.mark.slow
def test_faithfulness_is_shown_as_far_as_it_exists(tmp_path):
    folder = _write_run(tmp_path)
    assert "judge" not in _render(folder)
    audit = tmp_path / "audit" / "faithfulness.json"
    audit.parent.mkdir()
    interval = {"mean": 0.81, "low": 0.79, "high": 0.83, "n": 120}
    audit.write_text(json.dumps({"synthetic": interval}))
    page = Page(_render(folder))
    assert page.tables["faithfulness-table"][1:] == [
        ["synthetic images against their own masks", "0.810 [0.790, 0.830]", "120"]
    ]
    assert "guidance-table" not in page.tables
    whole = {
        **{key: interval for key in ("real_validation", "synthetic", "shuffled")},
        "ratio": 0.93,
        "ratio_low": 0.91,
        "guidance": [{"guidance_scale": scale, **interval, "mean": 0.4 + scale / 10} for scale in (0.0, 1.0, 3.0)],
        "judge": {"steps": 1500, "seed": 7, "num_training_cases": 199},
        "sharpness": {"real": 0.158, "synthetic": 0.123},
    }
    audit.write_text(json.dumps(whole))
    page = Page(_render(folder))
    assert [row[:1] + [row[1][:5]] for row in page.tables["guidance-table"][1:]] == [
        ["0", "0.400"],
        ["1", "0.500"],
        ["3", "0.700"],
    ]
    assert len(page.tables["faithfulness-table"]) == 4 and len(page.sources) == 3
    for fact in ("0.930", "0.910", "199 labelled", "0.158", "0.123"):
        assert fact in page.text


@pytest.mark.slow
def test_an_audit_of_other_pairs_is_left_out(tmp_path, caplog):
    folder = _write_run(tmp_path)
    save_figure(guidance_plot({0: Interval(0.5, 0.4, 0.6, 9, 9)}), tmp_path / "audit" / "guidance.png")
    interval = {"mean": 0.81, "low": 0.79, "high": 0.83, "n": 120}
    (tmp_path / "audit" / "faithfulness.json").write_text(json.dumps({"synthetic": interval}))
    for audited, shown in (
        ("pairs: now", True),  # from before cohorts were recorded
        ("pairs: now\ncohort: a", True),
        ("pairs: now\ncohort: b", False),
        ("pairs: then\ncohort: a", False),
    ):
        caplog.clear()
        (folder / "config.yaml").write_text("pairs: now\ncohort: a\n")
        (tmp_path / "audit" / "config.yaml").write_text(f"{audited}\n")
        page = Page(_render(folder))
        assert ("faithfulness-table" in page.tables) is shown and len(page.sources) == 2 + shown
        assert ("are not those of the benchmark, so the report leaves it out" in caplog.text) is not shown


@pytest.mark.slow
def test_hostile_names_stay_text(tmp_path, drawn):
    hostile = "<script>alert(1)</script>&\"'"
    folder = _write_run(tmp_path, arms=["real", hostile], classes=[hostile, "b"])
    page = Page(_render(folder))
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 4


def test_one_arm_one_class_one_subject(tmp_path, drawn):
    folder = _write_run(tmp_path, arms=["real"], classes=["tumour"], num_cases=2)
    _write_csv(folder / "comparison.csv", COLUMNS, [])
    page = Page(_render(folder))
    assert "nothing to compare" in page.text and "[no interval]" in page.tables["arm-table"][1][-1]


def test_incomplete_results_are_refused_in_one_line(tmp_path):
    folder = _write_run(tmp_path)
    (folder / "report.html").write_text("the report before")
    lines = (folder / "scores.csv").read_text().splitlines()
    for text, reason in (
        (
            "\n".join(lines[:-1]),
            "no hd95 of arm real.classical.synthetic, class Posterior, seed 2, case case_7",
        ),
        ("arm,seed\n", "no column case, class, metric, value"),
        ("\n".join([*lines, "real,0,case_0,Anterior,dice,high"]), "'high' is not a number"),
        ("\n".join([*lines, "real,0,case_0,Anterior,dice,nan"]), "'nan' is not a number"),
        ("\n".join([*lines, "real,0,case_0,Anterior,dice,-inf"]), "'-inf' is not a number"),
        (None, "no such file"),
    ):
        if text is None:
            (folder / "scores.csv").unlink()
        else:
            (folder / "scores.csv").write_text(text)
        with pytest.raises(UserError, match=reason) as caught:
            _render(folder)
        assert "\n" not in str(caught.value) and "scores.csv" in str(caught.value)
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json: not a JSON file"):
        Benchmark.load(folder)
    assert (folder / "report.html").read_text() == "the report before"


def test_format_interval():
    assert format_interval(Interval(0.8449, 0.83, 0.86, 9, 9), 3) == "0.845 [0.830, 0.860]"
    assert format_interval(Interval(-1.0, -2.0, 3.0, 9, 9), 1, signed=True) == "-1.0 [-2.0, +3.0]"
    assert format_interval(Interval(1.0, math.nan, math.nan, 9, 1), 2) == "1.00 [no interval]"


@pytest.mark.slow
def test_the_answer_comes_first_in_words_with_its_numbers(tmp_path):
    """Seven subjects that agree; then the question is changed after the results are known."""
    folder, asked = tmp_path / "benchmark", Primary("good", "bad", "dice", "lesion")
    found = replace(toy_benchmark(folder), declared=(Declared(asked, 0),)).compare([("good", "bad")])
    write_report(found, [], tmp_path, folder / "report.html")
    text, console = " ".join(Page((folder / "report.html").read_text()).text.split()), Console(file=io.StringIO())
    print_verdicts(found, [], console)
    answer = "Gain: lesion Dice is higher by 0.281 with good than with bad."
    assert text.index(answer) < text.index("All comparisons") and answer in console.file.getvalue()
    contents = json.loads((folder / "report.json").read_text())
    assert contents["statement"][0] == answer and contents["primary"]["tests"]["p_wilcoxon"] == 2 / 2**7
    assert contents["warnings"] == [] and len(contents["comparisons"]) == 8

    late = replace(found, declared=(*found.declared, Declared(Primary("good", "bad", "hd95", "lesion", 1.0), 2)))
    assert declaration_notes(late) == [
        "The primary comparison was changed. Declared first: good against bad, lesion Dice, no margin.",
        "It was declared when 2 jobs had been scored already.",
    ]
    assert "may have been chosen afterwards" in declaration_notes(replace(found, declared=()))[0]
    few = replace(found, subjects={case: "one" for case in found.subjects}).compare([("good", "bad")])
    assert primary_statement(few)[0].startswith("Too few subjects for a verdict (1, at least 6 are needed): ")


@pytest.mark.slow
def test_a_run_for_tuning_and_further_looks_at_the_test_subjects_are_stated(tmp_path):
    found = replace(toy_benchmark(tmp_path), evaluated="val").compare([("good", "bad")])
    found.save(tmp_path)
    assert Benchmark.load(tmp_path).evaluated == "val" and Benchmark.load(tmp_path).looks is None
    write_report(found, [], tmp_path, tmp_path / "report.html")
    text, console = Page((tmp_path / "report.html").read_text()).text, Console(file=io.StringIO())
    print_verdicts(found, [], console)
    assert text.index("For tuning: scored on validation subjects") < text.index("Verdict")
    assert console.file.getvalue().startswith("For tuning: scored on validation subjects")
    assert json.loads((tmp_path / "report.json").read_text())["warnings"][0].startswith("For tuning")
    for looks, stated in ((1, False), (3, True)):
        notes = " ".join(declaration_notes(replace(found, looks=looks)))
        assert ("3 configurations were scored on these test subjects" in notes) is stated


def test_a_weak_judge_gets_no_headline_ratio(tmp_path):
    folder = _write_run(tmp_path)
    (tmp_path / "audit").mkdir()
    interval = {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 12}
    audit = {"real_validation": interval, "synthetic": interval, "ratio": 1.0, "ratio_low": 0.8, "floor": 0.1}
    (tmp_path / "audit" / "faithfulness.json").write_text(json.dumps(audit))
    text = " ".join(Page(_render(folder)).text.split())
    assert "No headline ratio: the judge's Dice on real validation images is 0.250, below 0.3." in text
    assert "1.000 of the judge's Dice" not in text
    assert json.loads((folder / "report.json").read_text())["faithfulness_ratio"] is None
