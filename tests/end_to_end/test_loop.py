"""The whole loop at preset=smoke, stage by stage in processes of their own: what came out, checked from outside."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import samples
from monai.data import load_decathlon_datalist

from medaug.cohort import provenance
from medaug.cohort.manifest import Manifest
from medaug.training.checkpoint import load_model, read_checkpoint

pytestmark = pytest.mark.slow


def records(loop):
    return list(provenance.read(loop.folder / "synthetic" / "provenance.jsonl").values())


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and digest of every file but the logs; a report that was written again must have the same content."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and p.suffix != ".log"):
        stamp = 0 if path.stem in {"report", "checklists"} else path.stat().st_mtime_ns
        found[str(path.relative_to(folder))] = (stamp, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def test_every_pair_lies_on_its_hosts_grid_and_shows_the_cohorts_classes(loop):
    cohort = Manifest.load(loop.folder / "train" / "manifest.json")
    pairs = Manifest.load(loop.folder / "synthetic" / "manifest.json")
    hosts = {case.name: case for case in cohort.cases}
    made = {record["name"]: record for record in records(loop)}
    assert len(pairs.cases) == len(made) == 4
    for case in pairs.cases:
        host = hosts[made[case.name]["host"]]
        originals = [*cohort.image_paths(host), cohort.label_path(host)]
        for file, original in zip([*pairs.image_paths(case), pairs.label_path(case)], originals, strict=True):
            one, other = nib.load(file), nib.load(original)
            assert one.shape == other.shape
            np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
            if file != pairs.label_path(case):
                assert one.get_data_dtype() == other.get_data_dtype()
                assert np.asanyarray(one.dataobj).std() > 0
        label = np.asanyarray(nib.load(pairs.label_path(case)).dataobj)
        assert set(np.unique(label)) <= set(cohort.schema.values) and label.any()


def test_the_sample_follows_the_mask(loop):
    _, model = load_model(loop.folder / "train" / "last.ckpt", torch.device("cpu"))
    shape = read_checkpoint(loop.folder / "train" / "last.ckpt")[0].preprocessing.shape
    masks = torch.zeros(2, *shape, dtype=torch.long)
    masks[0, 8:16, 8:16, 8:16] = 1
    masks[1, 16:28, 16:28, 12:24] = 2

    def sample(mask, seed, scale=2.0):
        return samples(model, mask[None], [seed], guidance_scale=scale, sampler="dpmpp_2m", num_inference_steps=3)

    one, again, other = sample(masks[0], 1), sample(masks[0], 1), sample(masks[1], 1)
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3  # far above rounding, even after eight steps
    assert torch.equal(sample(masks[0], 1, 0.0), sample(masks[1], 1, 0.0))  # without guidance the mask has no effect
    assert (one - sample(masks[0], 2)).abs().mean() > 2e-3  # seeds differ


class Tables(HTMLParser):
    """Cell texts of every table by its id, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str | None, list[list[str]]] = {}
        self.text, self.cell = "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("id"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in {"td", "th"}

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data.strip()


def printed_cells(text: str, arms) -> dict[tuple[str, str], list[str]]:
    """Cells of the table by arm and class: the mean, and the difference from the baseline if there is one."""
    cells, arm = {}, None
    for line in text.splitlines():
        if line.strip() in arms:
            arm = line.strip()
        elif found := re.fullmatch(r"\s{2,}(\S.*?)\s{2,}((?:\S+ \[.+?\]\s*)+)", line):
            cells.setdefault((arm, found[1]), []).extend(re.findall(r"\S+ \[.+?\]", found[2]))
    return cells


def test_the_printed_table_the_report_and_the_scores_agree(loop):
    summary = json.loads((loop.folder / "benchmark" / "summary.json").read_text())
    page = Tables((loop.folder / "benchmark" / "report.html").read_text())
    shown = {}
    for name, (header, *rows) in page.tables.items():
        if name is None or not name.startswith("arm-table"):
            continue
        arm = None
        for row in rows:
            arm = row.pop(0) if len(row) == len(header) else arm
            shown.setdefault((arm, row[0]), []).extend(row[1:])
    printed = printed_cells(loop.done["benchmark"].stdout, summary["arms"])
    assert {key: cells[:1] for key, cells in printed.items()} == {key: cells[:1] for key, cells in shown.items()}
    assert len(shown) == 3 * (1 + len(summary["classes"]))

    scores = pd.read_csv(loop.folder / "benchmark" / "scores.csv")
    metrics = ("dice", "hd95", "nsd", "volume_error", "ece", "brier")
    assert len(scores) == 3 * len(summary["seeds"]) * summary["num_test_cases"] * len(summary["classes"]) * len(metrics)
    for (arm, name), cells in shown.items():
        chosen = scores[scores.arm == arm]
        chosen = chosen if name == "mean foreground" else chosen[chosen["class"] == name]
        for metric, cell, digits in zip(metrics, cells, (3, 2, 3, 1, 3, 4), strict=True):
            mean = chosen[chosen.metric == metric].value.mean()
            assert float(cell.split(" ")[0]) == pytest.approx(mean, abs=0.51 * 10**-digits)

    comparison = pd.read_csv(loop.folder / "benchmark" / "comparison.csv").query("metric == 'dice'")
    differences = {(row.arm, row["class"]): row.mean_difference for _, row in comparison.iterrows()}
    found = {key: float(cells[1].split(" ")[0]) for key, cells in printed.items() if len(cells) > 1}
    assert found == pytest.approx(differences, abs=0.51e-3) and len(found) == 2 * (1 + len(summary["classes"]))


def test_the_comparison_follows_from_the_scores(loop):
    scores = pd.read_csv(loop.folder / "benchmark" / "scores.csv")
    means = scores.groupby(["arm", "class", "metric"]).value.mean()
    comparison = pd.read_csv(loop.folder / "benchmark" / "comparison.csv")
    single = comparison[comparison["class"] != "mean foreground"]
    assert set(single.arm) == {"real+classical", "real+classical+synthetic"}
    for _, row in single.iterrows():
        if row.metric == "volume_error":
            continue  # compared by its magnitude
        expected = means[row.arm, row["class"], row.metric] - means[row.baseline, row["class"], row.metric]
        assert row.mean_difference == pytest.approx(expected, abs=1e-9)


def test_no_test_subject_was_seen_before_the_test(loop):
    cohort = Manifest.load(loop.folder / "train" / "manifest.json")
    card, _ = read_checkpoint(loop.folder / "train" / "last.ckpt")
    assert set(card.subjects["train"]) == cohort.subjects("train")
    assert set(card.subjects["val"]) == cohort.subjects("val")
    made = records(loop)
    assert {s for record in made for s in record["subjects"]} <= cohort.subjects("train")
    test = {word for case in cohort.split("test") for word in (case.name, case.subject)}
    assert test
    for path in [*(loop.folder / "synthetic").glob("*.json*"), *(loop.folder / "audit").glob("faithfulness.*")]:
        words = set(re.findall(r"\w+", path.read_text()))
        assert not words & test, path
    scored = set(pd.read_csv(loop.folder / "benchmark" / "scores.csv")["case"])
    assert scored == {case.name for case in cohort.split("test")}


def test_the_audits_summary_follows_from_its_table(loop):
    table = pd.read_csv(loop.folder / "audit" / "faithfulness.csv")
    summary = json.loads((loop.folder / "audit" / "faithfulness.json").read_text())
    means = table.groupby("images").dice.mean()
    for name in ("real_validation", "synthetic", "shuffled"):
        assert summary[name]["mean"] == pytest.approx(means[name]) and summary[name]["n"] == sum(table.images == name)
    for row in summary["guidance"]:
        assert row["mean"] == pytest.approx(means[f"guidance_{row['guidance_scale']:g}"])


@pytest.mark.parametrize("stage", ["train", "generate", "audit", "benchmark"])
def test_the_same_command_again_changes_nothing(loop, stage):
    before = snapshot(loop.home)
    done = loop.run(stage)
    assert done.returncode == 0 and "finished already, nothing to do" in done.stderr
    assert snapshot(loop.home) == before
    assert done.stdout == loop.done[stage].stdout  # the benchmark prints its table again


@pytest.mark.parametrize(
    ("stage", "word", "difference"),
    [
        ("train", "trainer.learning_rate=0.5", "trainer.learning_rate: 0.0008 -> 0.5"),
        ("generate", "guidance_scale=9", "generate.guidance_scale: 2.0 -> 9.0"),
        ("audit", "judge_steps=7", "audit.judge_steps: 6 -> 7"),
        ("benchmark", "steps=9", "benchmark.steps: 6 -> 9"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(demo, stage, word, difference):
    before = snapshot(demo.home)
    done = demo.run(stage, word)
    assert done.returncode == 2 and difference in done.stderr and "overwrite=true replaces it" in done.stderr
    assert "Traceback" not in done.stderr and snapshot(demo.home) == before


def test_overwrite_replaces_and_what_was_built_on_it_is_refused(demo, tmp_path):
    copy = type(demo)(demo.experiment, tmp_path)
    shutil.copytree(demo.home / "runs", tmp_path / "runs")
    former = records(copy)
    done = copy.run("generate", "guidance_scale=1", "num=2", "overwrite=true")
    assert done.returncode == 0, done.stderr
    made = records(copy)
    assert [r["guidance_scale"] for r in made] == [1.0, 1.0] and [r["guidance_scale"] for r in former] == [2.0] * 4
    assert len(list((copy.folder / "synthetic" / "labelsTr").iterdir())) == 2
    refused = copy.run("benchmark")
    assert refused.returncode == 2 and "pairs:" in refused.stderr


def test_tuning_scores_validation_subjects_and_leaves_the_benchmark_alone(demo, tmp_path):
    copy = type(demo)(demo.experiment, tmp_path)
    shutil.copytree(demo.home / "runs", tmp_path / "runs")
    before = snapshot(copy.folder / "benchmark")
    done = copy.run("benchmark", "evaluate=val", "seeds=[0]", "arms.names=[real,real+classical]")
    assert done.returncode == 0 and "For tuning: scored on validation subjects" in done.stdout, done.stderr
    cohort = Manifest.load(copy.folder / "train" / "manifest.json")
    scored = set(pd.read_csv(copy.folder / "tuning" / "scores.csv")["case"])
    assert scored == {case.name for case in cohort.split("val")}
    assert snapshot(copy.folder / "benchmark") == before
    assert len(json.loads((copy.folder / "looks.json").read_text())["looks"]) == 1  # that of the benchmark itself


def test_a_misspelt_key_names_the_nearest_and_a_training_key_its_stage(demo):
    done = demo.run("generate", "guidance_scal=1")
    assert done.returncode == 2 and "did you mean guidance_scale" in done.stderr
    done = demo.run("generate", "trainer.max_steps=5")
    assert done.returncode == 2 and "trainer.max_steps is read by `train`, not by `generate`" in done.stderr


def test_phantoms_are_called_phantoms_and_patients_are_not(loop):
    text = Tables((loop.folder / "benchmark" / "report.html").read_text()).text
    pairs = Manifest.load(loop.folder / "synthetic" / "manifest.json")
    phantom = loop.experiment == "demo"
    assert ("Phantom cohort." in text) == phantom == pairs.phantom == ("not patients" in pairs.description)
    assert "Not for clinical use" in text


def test_a_dry_run_prints_an_estimate_and_changes_nothing(demo):
    before = sorted(path for path in demo.folder.rglob("*") if "cache" not in path.parts)
    done = demo.run("generate", "num=400", "dry_run=true")
    assert done.returncode == 0 and "to make: 396 of 400 pairs" in done.stderr, done.stderr
    assert "estimated disk: " in done.stderr and "estimated time: " in done.stderr
    assert sorted(path for path in demo.folder.rglob("*") if "cache" not in path.parts) == before


def test_a_browser_shows_the_verdict(loop, chromium):
    report = loop.folder / "benchmark" / "report.html"
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={loop.home / 'browser'}", "--dump-dom"]
    done = subprocess.run([chromium, *words, report.as_uri()], capture_output=True, text=True, timeout=120)
    shutil.rmtree(loop.home / "browser", ignore_errors=True)
    text = " ".join(Tables(done.stdout).text.split())
    comparison = pd.read_csv(loop.folder / "benchmark" / "comparison.csv")
    for _, row in comparison[comparison["class"] == "mean foreground"].iterrows():
        assert f"{row.arm} against {row.baseline}, mean foreground" in text and row.verdict in text
    assert "No evidence of a difference" in text and "{{" not in text and "undefined" not in text.lower()


def test_the_export_holds_the_pairs_for_monai(loop):
    out = loop.home / "exported"
    pairs = Manifest.load(loop.folder / "synthetic" / "manifest.json")
    listed = load_decathlon_datalist(str(out / "dataset.json"), True, "training", str(out))
    assert [Path(item["label"]).name for item in listed] == [f"{case.name}.nii.gz" for case in pairs.cases]
    for item, case in zip(listed, pairs.cases, strict=True):
        volumes = [np.asanyarray(nib.load(path).dataobj) for path in pairs.image_paths(case)]
        stack = volumes[0] if len(volumes) == 1 else np.stack(volumes, -1)
        np.testing.assert_array_equal(np.asanyarray(nib.load(item["image"]).dataobj), stack)
        label = np.asanyarray(nib.load(pairs.label_path(case)).dataobj)
        np.testing.assert_array_equal(np.asanyarray(nib.load(item["label"]).dataobj), label)
