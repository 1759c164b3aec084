"""A recipe depends only on options, checkpoint and number; all hosts are used equally often."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from medaug.cohort.manifest import Case
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import NO_ATTRIBUTES, fit_attributes
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.diffusion.process import build_process
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.deformed import DeformedMasks, rejection
from medaug.synthesis.recipes import MOST_ATTEMPTS, Recipes, check_options
from medaug.synthesis.sources import load_masks

SIDE = 12


def host(index: int, label: np.ndarray | None = None) -> ModelCase:
    if label is None:
        label = np.zeros((SIDE,) * 3, np.uint8)
        label[4:8, 4:8, 3 + index % 3 : 8] = 1
    name = f"case_{index}"
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    case = Case(name, (f"{name}.nii.gz",), f"{name}_seg.nii.gz", f"subject_{index // 2}")
    return ModelCase(case, np.zeros((1, *label.shape), np.float32), label, np.eye(4), np.dtype("i2"), placement)


HOSTS = [host(i) for i in range(5)]


def write(index, hosts=HOSTS, generate=None, masks=None, sampler=None, checkpoint="abc", attributes=NO_ATTRIBUTES):
    masks, generate, sampler = masks or MasksOptions(), generate or GenerateOptions(), sampler or SamplerOptions()
    recipes = Recipes(hosts, load_masks(masks), generate, sampler, masks.source, checkpoint, attributes)
    return recipes(index)


def test_the_same_arguments_give_the_same_recipe_whatever_came_before():
    forwards = [write(i) for i in range(8)]
    backwards = [write(i) for i in reversed(range(8))][::-1]
    for (recipe, one, mask), (other, two, again) in zip(forwards, backwards, strict=True):
        assert recipe == other and one is two
        np.testing.assert_array_equal(mask, again)
    assert len({recipe.seed for recipe, _, _ in forwards}) == 8


def test_num_and_batch_size_change_no_recipe():
    other = GenerateOptions(num=500, batch_size=1)
    assert [write(i)[0] for i in range(4)] == [write(i, generate=other)[0] for i in range(4)]


def test_the_seed_changes_masks_noise_and_order():
    one, two = ([write(i, generate=GenerateOptions(seed=s)) for i in range(10)] for s in (0, 1))
    assert not {r.seed for r, _, _ in one} & {r.seed for r, _, _ in two}
    assert [r.host for r, _, _ in one] != [r.host for r, _, _ in two]


def test_hosts_are_used_equally_often_and_in_another_order_each_round():
    hosts = [write(i)[0].host for i in range(15)]
    assert set(Counter(hosts).values()) == {3}
    rounds = [tuple(hosts[i : i + 5]) for i in (0, 5, 10)]
    assert all(set(one) == {h.case.name for h in HOSTS} for one in rounds)
    assert len(set(rounds)) > 1


def test_the_recipe_says_what_was_done():
    generate = GenerateOptions(
        guidance_scale=1.25, guidance_interval=[0.1, 0.6], guidance_rescale=0.3, negative_classes=["lesion"]
    )
    sampler = SamplerOptions(name="ddim", num_inference_steps=7, eta=0.5, spacing="uniform")
    recipe, chosen, mask = write(3, generate=generate, sampler=sampler)
    assert (recipe.index, recipe.checkpoint, recipe.guidance_scale) == (3, "abc", 1.25)
    assert (recipe.sampler, recipe.num_inference_steps, recipe.eta) == ("ddim", 7, 0.5)
    assert (recipe.spacing, recipe.guidance_interval, recipe.guidance_rescale) == ("uniform", [0.1, 0.6], 0.3)
    assert recipe.negative_classes == ["lesion"]
    assert (recipe.host, recipe.host_subject) == (chosen.case.name, chosen.case.subject)
    names = ("rotation", "scaling", "translation", "elastic", "elastic_smoothness")
    assert recipe.mask_source == "deformed"
    assert recipe.mask_parameters == {name: getattr(MasksOptions(), name) for name in names}
    assert rejection(mask, np.asarray(chosen.label)) is None
    assert Recipe.from_json(recipe.to_json()) == recipe


def attributes_of(index: int, generate: GenerateOptions) -> tuple[dict, ModelCase]:
    known = {0: {"site": "A", "grade": 1.0}, 1: {"site": "B", "grade": 4.0}, 2: {"grade": 2.0, "age": 30.0}}
    hosts = [
        dataclasses.replace(h, case=dataclasses.replace(h.case, attributes=known[i % 3])) for i, h in enumerate(HOSTS)
    ]
    encoder = fit_attributes(["site", "grade"], [(h.case, h.affine) for h in hosts])
    recipe, chosen, _ = write(index, hosts, generate, attributes=encoder)
    assert Recipe.from_json(recipe.to_json()) == recipe
    return recipe.attributes, chosen


def test_attributes_are_the_hosts_unless_others_are_given():
    for index in range(len(HOSTS)):
        attributes, chosen = attributes_of(index, GenerateOptions())
        assert attributes == {name: v for name, v in chosen.case.attributes.items() if name != "age"}
        requested, _ = attributes_of(index, GenerateOptions(attributes=["site:B"]))
        assert requested == attributes | {"site": "B"}
    assert write(0)[0].attributes == {}


def test_real_masks_are_the_hosts_and_need_no_parameters():
    recipe, chosen, mask = write(1, masks=MasksOptions(source="real"))
    assert recipe.mask_parameters == {} and recipe.attempt == 0
    np.testing.assert_array_equal(mask, chosen.label)


def test_attempts_are_counted_and_each_has_a_seed_of_its_own(monkeypatch):
    first, _, unlike = write(0)
    answers = iter(["too small", "too large", None])
    monkeypatch.setattr(DeformedMasks, "rejection", lambda self, mask, label: next(answers))
    third, _, mask = write(0)
    assert (first.attempt, third.attempt) == (0, 2)
    assert first.seed != third.seed and (mask != unlike).any()


def test_a_host_without_a_valid_deformation_is_named_in_one_line(monkeypatch):
    calls = []
    monkeypatch.setattr(DeformedMasks, "rejection", lambda self, mask, label: calls.append(1) or "class 1 vanished")
    with pytest.raises(UserError, match=r"case_\d: no plausible mask in 100 attempts \(the last: class 1 vanished\)"):
        write(0)
    assert len(calls) == MOST_ATTEMPTS


SCHEMA = LabelSchema(((0, "background"), (1, "organ"), (2, "lesion")))


def refuse(generate=None, sampler=None, process=None):
    check_options(
        process or build_process("rectified_flow", "flow"),
        SCHEMA,
        generate or GenerateOptions(),
        sampler or SamplerOptions(),
    )


def test_options_that_work_are_let_through():
    refuse()
    refuse(GenerateOptions(guidance_interval=[0.2, 0.8], guidance_rescale=0.7, negative_classes=["lesion"]))
    refuse(sampler=SamplerOptions("heun", 18, spacing="karras"), process=build_process("edm", "edm"))
    refuse(GenerateOptions(guidance_scale=1.0))
    refuse(GenerateOptions(guidance_scale=1.0, guidance_rescale=0.7))  # an experiment may set it


@pytest.mark.parametrize(
    ("generate", "sampler", "complaint"),
    [
        ({}, {"name": "euler"}, r"sampler.name=euler: no such sampler.*\(all: "),
        ({}, {"spacing": "karras"}, "karras cannot be used with rectified_flow: .*; use trailing or uniform"),
        ({}, {"eta": 0.5}, "only ddim does"),
        ({}, {"num_inference_steps": 0}, "must be at least 1"),
        (
            {"negative_classes": ["organ", "tumour"]},
            {},
            "tumour is not a class of the masks; choose from organ, lesion",
        ),
        ({"negative_classes": ["background"]}, {}, "background is not a class of the masks"),
        ({"attributes": ["site:A"]}, {}, r"the model has no attribute site; train with data.attributes=\[NAME"),
    ],
)
def test_invalid_sampling_options_are_refused_with_one_line(generate, sampler, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        refuse(GenerateOptions(**generate), SamplerOptions(**sampler))
    assert "\n" not in str(caught.value)
