from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medaug.cohort.schema import LabelSchema
from medaug.dicom.masks import NamedMask, combine, guarded, one_line
from medaug.errors import UserError

SCHEMA = LabelSchema(((0, "background"), (1, "oedema"), (4, "core"), (2, "cyst")))


def named(name: str, start: int, stop: int, notes: Sequence[str] = ()) -> NamedMask:
    mask = np.zeros((10, 1, 1), bool)
    mask[start:stop] = True
    return NamedMask(name, name, lambda: (mask, list(notes)))


def undrawable(name: str) -> NamedMask:
    def draw() -> tuple[np.ndarray, list[str]]:
        raise UserError("must not be drawn")

    return NamedMask(name, name, draw)


def test_rules_find_names_and_the_later_class_wins() -> None:
    masks = [named("GTV core", 2, 5), named("Edema left", 0, 6), named("edema RIGHT", 8, 9)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        indices, notes = combine([masks[i] for i in order], {"oedema": "edema", "core": "core$"}, SCHEMA)
        assert indices.dtype == np.uint8
        assert indices[:, 0, 0].tolist() == [1, 1, 2, 2, 2, 1, 0, 0, 1, 0]
        assert notes == ['3 voxels of oedema are in "GTV core" too, and become core']
    indices, notes = combine(masks, {"core": "core$", "oedema": "edema"}, SCHEMA)
    assert indices[:, 0, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]


def test_class_indices_follow_the_schema_not_the_rules() -> None:
    indices, _ = combine([named("a", 0, 1), named("b", 1, 2)], {"cyst": "a", "oedema": "b"}, SCHEMA)
    assert indices[:3, 0, 0].tolist() == [3, 1, 0]


def test_overlapping_masks_of_one_class_are_not_noted() -> None:
    indices, notes = combine([named("a1", 0, 4), named("a2", 2, 6)], {"core": "a"}, SCHEMA)
    assert (indices.sum(), notes) == (2 * 6, [])


def test_masks_without_a_rule_are_noted_but_not_made() -> None:
    masks = [named("core", 0, 1, ["fractional"]), undrawable("spine"), undrawable("eye")]
    _, notes = combine(masks, {"core": "^core$", "cyst": "cyst"}, SCHEMA)
    assert notes == [
        'no rule in structures matches "spine", "eye"',
        "no segment or ROI for cyst",
        '"core": fractional',
    ]


def test_an_empty_mask_is_noted() -> None:
    assert combine([named("core", 3, 3)], {}, SCHEMA)[1][-1] == '"core" is empty'


def test_without_rules_names_are_classes() -> None:
    indices, notes = combine([named("CORE", 0, 1), named("cores", 1, 2)], {}, SCHEMA)
    assert indices[:3, 0, 0].tolist() == [2, 0, 0]
    assert notes[0] == 'no rule in structures matches "cores"'


@pytest.mark.parametrize(
    ("names", "structures", "what"),
    [
        (["a"], {"tumour": "a"}, "structures names tumour, .*; the labels are oedema, core, cyst"),
        (["a"], {"background": "a"}, "structures names background"),
        (["a"], {"core": "("}, "is not a regular expression"),
        (["gtv"], {"core": "gtv", "cyst": "v$"}, '"gtv" is matched by the rules of core and cyst'),
        (["a", "b"], {"core": "c"}, r'no rule in structures matches any of its names \("a", "b"\)'),
        ([], {"core": "c"}, "it has none"),
    ],
)
def test_refused(names: Sequence[str], structures: dict[str, str], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        combine([undrawable(name) for name in names], structures, SCHEMA)
    assert "; " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("Doe^Jane"), FileNotFoundError(2, "none", "/home/Doe"), MemoryError("Doe")]
)
def test_errors_do_not_quote_the_exception(error: Exception) -> None:
    with pytest.raises(UserError, match="^segmentation: ") as caught, guarded("segmentation"):
        raise error
    assert "Doe" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_names_are_one_line() -> None:
    assert one_line(" a\r\nb\0 ", "x") == "a  b"
    assert one_line(None, "x") == one_line(" ", "x") == "x"
    assert len(one_line("n" * 1000, "x")) == 64
