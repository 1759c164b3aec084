"""LabelSchema: round trips as properties, and refusals."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medaug.cohort import LabelSchema
from medaug.cohort.schema import IGNORE, ROUNDING
from medaug.errors import UserError

HIPPOCAMPUS = LabelSchema(((0, "background"), (1, "Anterior"), (2, "Posterior")))
TUMOUR = LabelSchema(
    labels=((0, "background"), (1, "necrosis"), (2, "oedema"), (3, "enhancing")),
    regions=(("whole", (1, 2, 3)), ("core", (1, 3)), ("enhancing", (3,))),
    ignore=9,
    remap=((4, 3), (7, 9)),
)
BRATS = LabelSchema(((0, "background"), (1, "necrotic core"), (2, "oedema"), (4, "enhancing tumour")))


@st.composite
def schemas(draw: st.DrawFn) -> LabelSchema:
    values = draw(st.lists(st.integers(1, 255), unique=True, max_size=12))
    names = draw(
        st.lists(
            st.text(min_size=1, max_size=8).filter(lambda n: n.strip() and n.casefold() != "background"),
            unique=True,
            min_size=len(values),
            max_size=len(values),
        )
    )
    free = [value for value in range(1, 256) if value not in values]
    used = draw(st.lists(st.sampled_from(free), unique=True, max_size=4))
    ignore = used.pop() if used and draw(st.booleans()) else None
    targets = [0, *values, *([] if ignore is None else [ignore])]
    remap = tuple((old, draw(st.sampled_from(targets))) for old in sorted(used))
    regions = []
    if values:
        members = st.lists(st.sampled_from(values), unique=True, min_size=1).map(sorted).map(tuple)
        regions = [(f"region {i}", one) for i, one in enumerate(draw(st.lists(members, max_size=4)))]
    return LabelSchema(((0, "background"), *zip(sorted(values), names, strict=True)), tuple(regions), ignore, remap)


def index_arrays(schema: LabelSchema) -> st.SearchStrategy[np.ndarray]:
    allowed = [*range(schema.num_classes), *([] if schema.ignore is None else [IGNORE])]
    return arrays(np.uint8, (2, 3, 2), elements=st.sampled_from(allowed))


@given(schemas())
def test_mapping_round_trip(schema: LabelSchema) -> None:
    assert LabelSchema.from_mapping(schema.to_mapping()) == schema
    mapping = json.loads(json.dumps(schema.to_mapping()))
    assert LabelSchema.from_mapping(mapping | {"name": "what else a manifest holds"}) == schema
    mapping["labels"] = dict(reversed(mapping["labels"].items()))
    assert LabelSchema.from_mapping(mapping) == schema


@given(schemas())
def test_values_may_be_numbers_or_texts(schema: LabelSchema) -> None:
    mapping = schema.to_mapping()
    for key in ("labels", "remap"):
        mapping[key] = {int(value): what for value, what in mapping.get(key, {}).items()}
    assert LabelSchema.from_mapping(mapping) == schema


def test_unused_keys_are_not_written() -> None:
    assert HIPPOCAMPUS.to_mapping() == {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    assert TUMOUR.to_mapping() == {
        "labels": {"0": "background", "1": "necrosis", "2": "oedema", "3": "enhancing"},
        "regions": {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]},
        "ignore": 9,
        "remap": {"4": 3, "7": 9},
    }


@given(schemas(), st.data())
def test_indices_are_contiguous_and_invertible(schema: LabelSchema, data: st.DataObject) -> None:
    indices = data.draw(index_arrays(schema))
    values = schema.to_values(indices)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) <= {*schema.values, schema.ignore}
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        back = schema.to_indices(values.astype(dtype), "file")
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, indices)


@given(schemas(), st.floats(width=32) | st.integers(-300, 70_000))
def test_exactly_the_values_of_the_schema_are_accepted(schema: LabelSchema, value: float) -> None:
    array = np.array([[[0, value]]])
    whole = value
    if math.isfinite(value):
        assume(abs(abs(value - round(value)) - ROUNDING) > 1e-6)
        whole = round(value) if abs(value - round(value)) < ROUNDING else value
    meant = dict(schema.remap).get(whole, whole)
    if meant in schema.values:
        assert schema.to_indices(array, "file")[0, 0, 1] == schema.values.index(int(meant))
    elif meant == schema.ignore:
        assert schema.to_indices(array, "file")[0, 0, 1] == IGNORE
    else:
        with pytest.raises(UserError, match=r"^seg\.nii\.gz: label values .* not in the schema"):
            schema.to_indices(array, "seg.nii.gz")


def test_brats_by_hand() -> None:
    assert BRATS.to_indices(np.array([[[0, 1, 2, 4]]]), "x").ravel().tolist() == [0, 1, 2, 3]
    assert BRATS.to_values(np.array([[[0, 1, 2, 3]]])).ravel().tolist() == [0, 1, 2, 4]
    assert BRATS.num_classes == 4
    assert BRATS.foreground == ("necrotic core", "oedema", "enhancing tumour")
    with pytest.raises(UserError, match="label values 3 are not"):
        BRATS.to_indices(np.array([[[3]]]), "x")


@given(schemas(), st.data())
def test_one_hot_and_back(schema: LabelSchema, data: st.DataObject) -> None:
    indices = data.draw(index_arrays(schema))
    planes = schema.one_hot(indices)
    assert planes.shape == (schema.num_classes, *indices.shape)
    np.testing.assert_array_equal(planes.sum(axis=0), indices != IGNORE)
    np.testing.assert_array_equal(schema.from_one_hot(planes), indices)
    with pytest.raises(ValueError, match="planes for"):
        schema.from_one_hot(planes[1:])


@given(schemas(), st.data())
def test_structures_are_the_regions_or_else_the_foreground_classes(schema: LabelSchema, data: st.DataObject) -> None:
    indices = data.draw(index_arrays(schema))
    values = schema.to_values(indices)
    masks = schema.structure_masks(indices)
    expected = dict(schema.regions) or {name: (value,) for value, name in schema.labels[1:]}
    assert list(masks) == list(schema.structures()) == list(expected)
    for name, members in expected.items():
        by_voxel = [[[value in members for value in row] for row in plane] for plane in values.tolist()]
        np.testing.assert_array_equal(masks[name], by_voxel)


@pytest.mark.parametrize("order", ["C", "F"])
def test_mapping_a_large_label_needs_little_memory(order: str) -> None:
    values = np.zeros((200, 200, 200), np.float32, order=order)  # 31 MiB
    values[150:, 3, ::7] = 4
    tracemalloc.start()
    found = BRATS.to_indices(values, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.where(values == 4, 3, 0))
    assert peak < found.nbytes + (24 << 20)


def test_wrong_values_of_a_large_label_are_listed_in_order() -> None:
    values = np.zeros((300, 300, 30), np.int16)
    values[[299, 0, 150, 5, 7, 290], 1, 1] = 3, 70, 5, 60, 50, 40
    with pytest.raises(UserError, match=r"values 3, 5, 40, 50, 60, \.\.\. are not"):
        BRATS.to_indices(values, "x")


def test_remapping_and_ignoring_by_hand() -> None:
    found = TUMOUR.to_indices(np.array([0, 1, 2, 3, 4, 9, 7]), "x")
    assert found.tolist() == [0, 1, 2, 3, 3, IGNORE, IGNORE]
    assert TUMOUR.to_values(found).tolist() == [0, 1, 2, 3, 3, 9, 9]
    with pytest.raises(UserError, match=r"values 5 .*3 enhancing, 9 ignored, 4 read as 3, 7 read as 9\)"):
        TUMOUR.to_indices(np.array([5]), "x")
    with pytest.raises(ValueError, match="does not have"):
        HIPPOCAMPUS.to_values(np.array([0, IGNORE]))
    with pytest.raises(ValueError, match="does not have"):
        HIPPOCAMPUS.to_values(np.array([3]))


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({}, "background"),
        ({"1": "lesion"}, "background"),
        ({"0": "lesion"}, "background"),
        ({"0": "background", "1": "a", "2": "a"}, "name a occurs twice"),
        ({"0": "background", "1": "a", "01": "b"}, "value 1 occurs twice"),
        ({"0": "background", "x": "a"}, 'value "x"'),
        ({"background": 0, "lesion": 1}, 'value "background"'),
        ({"0": "background", "-1": "a"}, 'value "-1"'),
        ({"0": "background", "256": "a"}, "outside 0..255"),
        ({"0": "background", "1": ""}, "no name"),
        ({"0": "background", "1": [1, 2]}, "no name"),
        (["background"], "not a mapping"),
    ],
)
def test_bad_mappings_are_refused(mapping: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        LabelSchema.from_mapping({"labels": mapping}, "cohort.json")
    assert_one_line(error)


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    text = str(error.value)
    assert text.startswith("cohort.json: ") and text.count("cohort.json") == 1
    assert "\n" not in text and "; " in text


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"regions": {"all": [1, 5]}}, r"region all holds 5, which is not the label of a class \(1, 2, 4\)"),
        ({"regions": {"all": [0, 1]}}, "region all holds 0"),
        ({"regions": {"all": []}}, "region all is empty"),
        ({"regions": {"": [1]}}, "no name"),
        ({"regions": {"Background": [1]}}, "the name of the background"),
        ({"regions": {"all": ["x"]}}, 'region all holds the value "x"'),
        ({"regions": {"all": [True]}}, 'region all holds the value "True"'),
        ({"regions": ["all"]}, "regions is not a mapping"),
        ({"regions": {"all": [1, 3]}, "remap": {3: 4}}, "region all holds 3, which remap turns into 4; write 4"),
        ({"ignore": 2}, "ignore=2 is the label oedema"),
        ({"ignore": 0}, "ignore=0 is the label background"),
        ({"ignore": 300}, "ignore=300 is outside"),
        ({"ignore": "none"}, 'ignore holds the value "none"'),
        ({"remap": {3: 5}}, "remap 3 to 5: 5 is not the label"),
        ({"remap": {1: 2}}, "remap 1 to 2: 1 is the label necrosis"),
        ({"remap": {0: 1}}, "remap 0 to 1: 0 is the label background"),
        ({"remap": {3: 5, 5: 4}}, "remap 3 to 5: 5 is remapped itself; remap 3 to 4"),
        ({"remap": {3: 3}}, "remap 3 to 3: 3 is remapped itself"),
        ({"remap": {255: 1}, "ignore": 255}, "255 is ignored"),
        ({"remap": {256: 1}}, "256 is outside"),
        ({"remap": {"3": 1, "03": 1}}, "value 3 occurs twice"),
        ({"remap": [3, 4]}, "remap is not a mapping"),
    ],
)
def test_bad_regions_ignore_and_remap_are_refused(more: dict[str, object], reason: str) -> None:
    labels = {0: "background", 1: "necrosis", 2: "oedema", 4: "enhancing"}
    with pytest.raises(UserError, match=reason) as error:
        LabelSchema.from_mapping({"labels": labels} | more, "cohort.json")
    assert_one_line(error)


def test_direct_construction_is_validated_too() -> None:
    with pytest.raises(UserError, match="background"):
        LabelSchema(((1, "lesion"), (0, "background")))


def test_255_as_a_label_value() -> None:
    schema = LabelSchema(((0, "background"), (255, "ignore")))
    assert schema.to_indices(np.array([[[0, 255]]]), "x").ravel().tolist() == [0, 1]
