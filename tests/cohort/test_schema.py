"""LabelSchema: round trips as properties, refusals by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medaug.cohort import LabelSchema
from medaug.errors import UserError

HIPPOCAMPUS = LabelSchema(((0, "background"), (1, "Anterior"), (2, "Posterior")))
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
    return LabelSchema(((0, "background"), *zip(sorted(values), names, strict=True)))


@given(schemas())
def test_mapping_round_trip(schema: LabelSchema) -> None:
    assert LabelSchema.from_mapping(schema.to_mapping()) == schema
    assert LabelSchema.from_mapping(dict(reversed(schema.to_mapping().items()))) == schema


@given(schemas(), st.data())
def test_indices_are_contiguous_and_invertible(schema: LabelSchema, data: st.DataObject) -> None:
    indices = data.draw(arrays(np.uint8, (2, 3, 2), elements=st.integers(0, schema.num_classes - 1)))
    values = schema.to_values(indices)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) <= set(schema.values)
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        back = schema.to_indices(values.astype(dtype), "file")
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, indices)


@given(schemas(), st.floats(width=32) | st.integers(-300, 70_000))
def test_exactly_the_values_of_the_schema_are_accepted(schema: LabelSchema, value: float) -> None:
    array = np.array([[[0, value]]])
    if value in schema.values:
        assert schema.to_indices(array, "file")[0, 0, 1] == schema.values.index(int(value))
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
        LabelSchema.from_mapping(mapping, "cohort.json")  # type: ignore[arg-type]
    assert str(error.value).startswith("cohort.json: ")
    assert "\n" not in str(error.value)


def test_direct_construction_is_validated_too() -> None:
    with pytest.raises(UserError, match="background"):
        LabelSchema(((1, "lesion"), (0, "background")))


def test_255_as_a_label_value() -> None:
    schema = LabelSchema(((0, "background"), (255, "ignore")))
    assert schema.to_indices(np.array([[[0, 255]]]), "x").ravel().tolist() == [0, 1]
