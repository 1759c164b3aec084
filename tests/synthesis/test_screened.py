"""Generation with screening: retries, records, resumption, ranks, near-duplicates; rules are planted verdicts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from generated_pairs import files, read

from medaug.cohort import provenance
from medaug.cohort.seen import Seen
from medaug.data.cases import load_cases
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions, ScreenOptions
from medaug.screening.results import ScreeningResult
from medaug.screening.rules import Check
from medaug.screening.screen import Screen
from medaug.synthesis.attempts import Attempts
from medaug.synthesis.dataset_card import dataset_card
from medaug.synthesis.generation import Screening, generate_pairs
from medaug.synthesis.pairs import Pairs
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.screened import Conclusion
from medaug.synthesis.sources import load_masks

NUM = 5


def coin(limit):
    """A rule that passes an image by its content: about `limit` of all, always the same ones."""

    def judge(sample):
        figure = hashlib.sha256(sample.image.tobytes()).digest()[0] / 256
        return [Check("coin", figure, limit, at_least=False)]

    return judge


def in_order(twice):
    """A rule of the set that removes the pairs at these places."""

    def fit(reference, options):
        places = iter(range(100))
        return lambda sample: [Check("twice", float(next(places) in twice), 0.5, at_least=False)]

    return {"duplicates": SimpleNamespace(fit=fit)}


def screening(limit=0.35, retries=20, keep=False, twice=()):
    return Screening(Screen({"coin": coin(limit)}, in_order(twice), None, ScreenOptions()), "fitted", retries, keep)


@pytest.fixture(scope="module")
def make(cohort, card, model, tmp_path_factory):
    hosts = load_cases(cohort, cohort.cases, card.preprocessing, tmp_path_factory.mktemp("cache"))
    masks = MasksOptions(rotation=2.0, elastic=0.3)
    sampler = SamplerOptions(num_inference_steps=2)
    recipes = Recipes(hosts, load_masks(masks), GenerateOptions(), sampler, masks.source, "sum")

    def run(folder: Path, rules: Screening | None, num=NUM, rank=0, ranks=1, batch_size=2):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RANK", str(rank))
            environment.setenv("WORLD_SIZE", str(ranks))
            generate_pairs(model, card, recipes, num, batch_size, folder, None, rules)
        return Conclusion(rules, card, folder, num) if rules else None

    return run


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """An uninterrupted run with all rejected pairs kept."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder, screening(keep=True))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(folder).items()}


@pytest.mark.slow
def test_rejected_pairs_are_tried_again_under_the_next_attempt(whole):
    accepted = provenance.read_all(whole)
    rejected = provenance.read_all(whole / "rejected")
    assert len(rejected) > 2 and sorted({index for index, _ in accepted}) == list(range(NUM))
    for index, attempt in accepted:
        assert all(tried < attempt for i, tried in rejected if i == index)
    for verdict, records in ((True, accepted), (False, rejected)):
        for record in records.values():
            check = record["screening"]["coin"]["coin"]
            assert check["passed"] is verdict and (check["figure"] <= check["at_most"]) is verdict
            assert record["screener"] == "fitted" and record["subjects"] == [record["host_subject"]]
            folder = whole if verdict else whole / "rejected"
            assert all(read(folder / file).ndim == 3 for file in (*record["images"], record["label"]))
    seeds = [record["seed"] for record in (*accepted.values(), *rejected.values())]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.slow
def test_rejected_files_are_kept_on_request_only(make, whole, tmp_path):
    make(tmp_path, screening())
    assert [name for name in files(tmp_path) if name.startswith("rejected/")] == ["rejected/provenance.jsonl"]
    pairs = {name: content for name, content in contents(whole).items() if not name.startswith("rejected/")}
    assert {name: content for name, content in contents(tmp_path).items() if name in pairs} == pairs


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [0, 3, 6])
def test_a_run_killed_at_any_record_and_resumed_gives_the_same_bytes(make, whole, tmp_path, monkeypatch, stopped_after):
    append, count = provenance.append, []

    def killed(path, record):
        if len(count) == stopped_after:
            raise KeyboardInterrupt
        count.append(append(path, record))

    monkeypatch.setattr(provenance, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, screening(keep=True))
    monkeypatch.undo()
    make(tmp_path, screening(keep=True))
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_ranks_make_each_pair_once_and_agree_on_the_result(make, card, tmp_path):
    rules = screening(twice=[1])
    make(tmp_path, rules, rank=1, ranks=2)
    assert Attempts.read(tmp_path, rules.retries).missing(NUM) == 3
    conclusions = [make(tmp_path, rules, rank=rank, ranks=2) for rank in (0, 1)]
    results = [conclusion.conclude() for conclusion in conclusions]
    assert results[0] == results[1] == ScreeningResult.load(tmp_path)
    records = provenance.read_all(tmp_path)
    assert sorted(index for index, _ in records) == list(range(NUM))
    assert len(list(tmp_path.glob("labelsTr/*"))) == NUM - 1 == results[0].kept


@pytest.mark.slow
def test_the_set_is_screened_in_order_and_more_pairs_change_no_verdict(make, card, tmp_path):
    few = make(tmp_path, screening(twice=[1]), num=3).conclude()
    second = sorted(tmp_path.glob("rejected/labelsTr/*"))
    assert [path.name for path in second] == ["toy_synthetic_00001.nii.gz"]
    assert few.removed == ["toy_synthetic_00001"] and (few.requested, few.kept) == (3, 2)
    more = make(tmp_path, screening(twice=[1]), num=NUM).conclude()
    assert more.removed == few.removed and more.kept == NUM - 1
    pairs = Pairs.collect(card, tmp_path, NUM, more.removed)
    assert [case.name[-1] for case in pairs.manifest.cases] == ["0", "2", "3", "4"]
    assert all(path.exists() for case in pairs.manifest.cases for path in pairs.manifest.files(case))


def test_the_summary_counts_what_the_records_say(make, whole):
    result = make(whole, screening(keep=True)).conclude()
    rejected = len(provenance.read_all(whole / "rejected"))
    assert (result.attempts, result.passed) == (rejected + NUM, NUM)
    assert result.pass_rate == NUM / (rejected + NUM)
    assert result.rules["coin"].rejected == rejected and result.rules["coin"].checks == {"coin": rejected}
    assert result.rules["duplicates"].judged == NUM and not result.given_up
    assert json.loads((whole / "screening.json").read_text())["pass_rate"] == result.pass_rate


@pytest.mark.slow
def test_pairs_are_given_up_after_their_last_attempt(make, tmp_path, caplog):
    conclusion = make(tmp_path, screening(limit=0.3, retries=1))
    result = conclusion.conclude()
    assert result.given_up and result.kept == NUM - len(result.given_up)
    rejected = provenance.read_all(tmp_path / "rejected")
    assert all(sum(i == index for i, _ in rejected) == 2 for index in result.given_up)
    assert f"{len(result.given_up)} were given up" in caplog.text
    before = contents(tmp_path)
    make(tmp_path, screening(limit=0.3, retries=1))
    assert contents(tmp_path) == before


def test_if_nothing_passes_one_line_names_the_summary(make, tmp_path):
    with pytest.raises(UserError, match=r"screening.json: none of 2 images passed the screening; see which") as error:
        make(tmp_path, screening(limit=-1, retries=0), num=2).conclude()
    assert "\n" not in str(error.value)


def test_without_screening_no_record_and_no_file_is_new(make, tmp_path):
    make(tmp_path, None)
    assert not {"screening", "screener"} & set(next(iter(provenance.read_all(tmp_path).values())))
    assert {Path(name).parts[0] for name in files(tmp_path)} == {"imagesTr", "labelsTr", "provenance.jsonl"}


def test_a_turn_holds_the_pairs_that_were_rejected_the_same_number_of_times():
    attempts = Attempts(2, {0}, {1: [0], 2: [0, 3], 3: [1, 2, 4]})
    assert attempts.turn(range(4), 0) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert attempts.turn(range(4), 1) == [(1, 1), (2, 1), (3, 2)]
    assert attempts.turn(range(4), 2) == [(2, 4), (3, 3)]
    assert attempts.open([1, 2, 3], 1) == [1] and attempts.open([2, 3], 2) == [2]
    assert attempts.given_up(3) and attempts.settled(0) and attempts.missing(5) == 3


def test_the_guard_refuses_a_screening_that_saw_a_test_subject(cohort):
    from medaug.comparison.guard import refuse_leaky_screening
    from medaug.screening.screener import Screener

    splits = ("train", "val", "test", "train", "val")
    cases = tuple(replace(case, split=split) for case, split in zip(cohort.cases, splits, strict=True))
    split = replace(cohort, cases=cases)
    train, val, test = (sorted(split.subjects(name)) for name in ("train", "val", "test"))
    refuse_leaky_screening(split, Screener(Seen({"train": train, "val": val}), "x"))
    for seen in ({"train": train, "val": [*val, *test]}, {"train": [*train, *val], "val": []}, {"train": test}):
        with pytest.raises(UserError, match="leak: the screening of the pairs saw"):
            refuse_leaky_screening(split, Screener(Seen(seen), "x"))


@pytest.mark.slow
def test_a_record_of_another_screening_is_refused(make, card, tmp_path):
    make(tmp_path, screening())
    pairs = Pairs.collect(card, tmp_path, NUM)
    (tmp_path / "finished.json").write_text(json.dumps(pairs.save(tmp_path)))
    with pytest.raises(
        UserError, match="screener.json: is not the record of the segmenter and rules that screened toy_synthetic_00000"
    ):
        Pairs.load(tmp_path)


def test_the_dataset_card_says_what_the_runs_files_say(make, cohort, card, whole):
    result = make(whole, screening(keep=True)).conclude()
    pairs = Pairs.collect(card, whole, NUM)
    text = dataset_card(card, pairs, replace(cohort, licence="CC-BY-SA 4.0"), result)
    _, header, body = text.split("---\n", 2)
    found = yaml.safe_load(header)
    assert found["license"] == "cc-by-sa-4.0" and found["task_categories"] == ["image-segmentation"]
    assert found["size_categories"] == ["n<1K"] and {"medical", "synthetic"} <= set(found["tags"])
    rejected = len(provenance.read_all(whole / "rejected"))
    assert f"| coin | {rejected} of {NUM + rejected} | {rejected / (NUM + rejected):.1%} |" in body
    assert f"| pairs | {NUM}, from 5 host scans of 5 subjects |" in body and "| classes | shell, core |" in body
    assert "Not for clinical use" in body and "names no licence" not in body
    for licence, fields in (("", {"license": "unknown"}), ("ours", {"license": "other", "license_name": "ours"})):
        plain = dataset_card(card, pairs, replace(cohort, licence=licence), None)
        assert fields.items() <= yaml.safe_load(plain.split("---\n")[1]).items()
        assert "**not screened**" in plain and ("names no licence" in plain) == (licence == "")
