"""Mixtures of mask sources: weights, limits of reuse, and that a pair's source depends on seed and number alone."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from medaug.cohort.manifest import Case
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.masks import TrainingMasks
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks
from medaug.synthesis.usage import Usage

SIDE = 8


def host(index: int) -> ModelCase:
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[2:6, 2:6, 2:6] = 1
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    case = Case(f"case_{index}", ("a",), "b", f"subject_{index}")
    return ModelCase(case, np.zeros((1, SIDE, SIDE, SIDE), np.float32), label, np.eye(4), np.dtype("i2"), placement)


HOSTS = [host(i) for i in range(7)]


def recipes(seed: int = 0, max_per_host: int | None = None, **masks) -> Recipes:
    source = load_masks(MasksOptions(source="mixed", elastic=0.2, **masks)).fitted(TrainingMasks.of(HOSTS))
    return Recipes(
        HOSTS, source, GenerateOptions(seed=seed), SamplerOptions(), "mixed", "sum", max_per_host=max_per_host
    )


def names(recipes: Recipes, number: int) -> list[str]:
    return [recipes.source_of(i)[0] for i in range(number)]


def test_sources_are_chosen_by_weight():
    number = 1000
    counts = Counter(names(recipes(mix=["real:1", "deformed:3"]), number))
    low, high = binom.ppf([1e-4, 1 - 1e-4], number, 0.25)
    assert low <= counts["real"] <= high and sum(counts.values()) == number


def test_the_source_depends_on_seed_and_number_whatever_was_made_before():
    forwards = names(recipes(mix=["real:0.5", "deformed:0.5"], max_per_mask=2), 30)
    shuffled = list(range(30))
    random.Random(0).shuffle(shuffled)
    other = recipes(mix=["real:0.5", "deformed:0.5"], max_per_mask=2)
    found = {i: other.source_of(i)[0] for i in shuffled}
    assert [found[i] for i in range(30)] == forwards
    assert names(recipes(seed=1, mix=["real:0.5", "deformed:0.5"], max_per_mask=2), 30) != forwards


def test_a_recipe_names_its_own_source_with_its_parameters():
    made = recipes(mix=["real:0.5", "deformed:0.5"])
    for index in range(8):
        recipe, chosen, mask = made(index)
        assert recipe.mask_source == made.source_of(index)[0]
        assert (recipe.mask_parameters == {}) == (recipe.mask_source == "real")
        assert ((mask == chosen.label).all()) == (recipe.mask_source == "real")
        assert made.record(recipe) == {"subjects": [chosen.case.subject]} | (
            {"mask_rejections": made.rejected[index, recipe.attempt]} if recipe.attempt else {}
        )


def test_an_unchanged_mask_is_used_at_most_as_often_as_allowed():
    made = recipes(mix=["real:0.9", "deformed:0.1"], max_per_mask=3)
    uses = Counter()
    for index in range(70):
        if made.source_of(index)[0] == "real":
            uses[made._host(index)] += 1
    assert set(uses.values()) == {3} and len(uses) == len(HOSTS), "ten pairs per host, nine of ten of them real"


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        ("mixed", {"mix": ["real:1"], "max_per_mask": 2}, r"pair 14: the mask of its host has been used 2 times"),
        ("real", {"max_per_mask": 2}, r"masks.max_per_mask=2: 7 masks give at most 14 pairs; make fewer pairs"),
    ],
)
def test_too_many_pairs_for_the_masks_are_refused_at_once(source, options, complaint):
    made = Recipes(
        HOSTS, load_masks(MasksOptions(source=source, **options)), GenerateOptions(), SamplerOptions(), "", ""
    )
    made.source_of(13)
    with pytest.raises(UserError, match=complaint):
        made.source_of(14)
    with pytest.raises(UserError, match="masks.max_per_host=3: 7 hosts give at most 21 pairs; make fewer pairs"):
        recipes(mix=["deformed:1"], max_per_host=3).source_of(21)


@pytest.mark.parametrize(
    ("mix", "complaint"),
    [
        ([], "masks=mixed: needs masks.mix; write each source once"),
        (["real"], r"masks.mix=\[real\]: not sources with weights"),
        (["real:1", "real:2"], "not sources with weights"),
        (["real:0"], "the weight of real is 0, but must be a number above 0"),
        (["real:-1"], "the weight of real is -1"),
        (["real:nan"], "the weight of real is nan"),
        (["real:much"], "the weight of real is much"),
        (["reel:1"], "reel: no such mask source; did you mean real"),
        (["mixed:1"], "mixed is itself a mixture"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_with_one_line(mix, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        load_masks(MasksOptions(source="mixed", mix=mix))
    assert "\n" not in str(caught.value)


def test_the_end_of_a_run_counts_sources_reuse_and_rejections():
    pairs = [
        {"mask_source": source, "host": name, "mask_rejections": kinds}
        for source, name, kinds in [
            ("real", "a", {}),
            ("real", "a", {}),
            ("deformed", "a", {"volume": 2}),
            ("deformed", "b", {"border": 1, "volume": 1}),
        ]
    ]
    usage = Usage.of(pairs, [{"mask_source": "real", "host": "b", "mask_rejections": {"border": 1}}])
    assert usage.lines() == [
        "masks: deformed 2 (50%), real 2 (50%)",
        "hosts: 2, with 1 to 3 pairs each",
        "unchanged training masks: at most 2 pairs each",
        "masks rejected as implausible: 5 of 10 (border 2, volume 3)",
    ]
    assert usage.to_mapping()["most_per_host"] == 3 and usage.to_mapping()["most_per_mask"] == 2
