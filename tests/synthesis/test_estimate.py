"""How much disk and time pairs need, the refusal of a disk that is too small, progress, and an interruption."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from medaug import generate, progress
from medaug.cohort import provenance
from medaug.data.cases import load_cases
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, Options, SamplerOptions
from medaug.synthesis import estimate
from medaug.synthesis.estimate import Estimate, estimate_pairs
from medaug.synthesis.generation import generate_pairs
from medaug.synthesis.job import Job
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks

SIZES = r"estimated disk: [\d.]+ [KMG]iB, [\d.]+ KiB a pair; .* are free"


@pytest.fixture(scope="module")
def recipes(cohort, card, tmp_path_factory) -> Recipes:
    hosts = load_cases(cohort, cohort.cases, card.preprocessing, tmp_path_factory.mktemp("cache"))
    sampler = SamplerOptions(num_inference_steps=4)
    return Recipes(hosts, load_masks(MasksOptions(source="real")), GenerateOptions(), sampler, "real", "sum")


@pytest.mark.slow
def test_the_estimate_is_near_the_files_and_the_time_of_real_pairs(recipes, card, model, tmp_path, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(ticks)))
    found = estimate_pairs(model, card, recipes, 10, GenerateOptions(batch_size=2), screened=True)
    # A tick a sampling of 2 steps and 2 pairs: 4 steps take 2 ticks, so a pair takes 1.
    assert found.seconds == 10.0 and found.uncounted == ("the screening segmenter", "rejected pairs")
    generate_pairs(model, card, recipes, 3, 3, tmp_path)
    written = [path.stat().st_size for path in tmp_path.glob("*Tr/*")]
    assert found.pair_bytes == pytest.approx(np.sum(written) / 3, rel=0.3)
    assert (
        re.fullmatch(SIZES, found.lines(12, tmp_path)[1]) and found.lines(12, tmp_path)[0] == "to make: 10 of 12 pairs"
    )
    few = estimate_pairs(model, card, recipes, 4, GenerateOptions(batch_size=2), screened=False)
    assert few.seconds is None and len(few.lines(4, tmp_path)) == 2


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**20))
    Estimate(5, 2**20, None, 1, ()).refuse_full_disk(tmp_path / "new")
    with pytest.raises(UserError, match="the 6 pairs need about 6 MiB, and the disk has 5 MiB free; free some space"):
        Estimate(6, 2**20, None, 1, ()).refuse_full_disk(tmp_path / "new" / "folder")


def test_without_a_terminal_the_log_says_n_of_n_with_throughput(caplog, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    with caplog.at_level(logging.INFO), progress.counting("generating", "pairs", 100, 20) as advance:
        for now, number in ((10.0, 20), (20.0, 10), (40.0, 10), (50.0, 40)):
            clock.now = now
            advance(number)
    assert caplog.messages == [
        "generating: 40 of 100 pairs, 2 pairs/s, 30 s left",
        "generating: 60 of 100 pairs, 1 pairs/s, 40 s left",
        "generating: 100 of 100 pairs, 1.6 pairs/s, 0 s left",
    ]


@pytest.mark.slow
def test_an_interruption_says_how_many_pairs_are_there_and_how_to_go_on(
    cohort, card, model, recipes, tmp_path, monkeypatch, caplog
):
    append = provenance.append

    def interrupted(path, record):
        append(path, record)
        if record["index"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(provenance, "append", interrupted)
    options = Options(generate=GenerateOptions(num=5, batch_size=2))
    job = Job(
        *(model, card, "sum", cohort, recipes.masks, options.generate, options.sampler, "real", None),
        *(tmp_path / "cache", options.screen, options.segmenter, options.scoring),
    )
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.INFO):
        generate._make(job, recipes, tmp_path)
    assert caplog.messages[-1] == "3 of 5 pairs are done, and none is lost: the same command makes the others"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        job.estimate(recipes, tmp_path, started=True)
        job.estimate(recipes, tmp_path, started=False)
    assert [line for line in caplog.messages if "to make" in line] == ["to make: 2 of 5 pairs", "to make: 5 of 5 pairs"]
