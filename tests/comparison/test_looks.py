"""Every configuration that is scored on the test subjects is counted, and only those."""

from __future__ import annotations

import pytest

from medaug.comparison.looks import count_look
from medaug.errors import UserError

FIRST, SECOND = {"arms": ["a", "b"], "steps": 3}, {"arms": ["a", "b", "c"], "steps": 3}


def test_a_resumed_benchmark_is_one_look_and_a_changed_one_another(tmp_path):
    path = tmp_path / "looks.json"
    counts = [count_look(path, identity) for identity in (FIRST, dict(reversed(FIRST.items())), SECOND, SECOND, FIRST)]
    assert counts == [1, 1, 2, 2, 3]


def test_a_damaged_record_is_refused_and_kept(tmp_path):
    path = tmp_path / "looks.json"
    path.write_text('{"look": []}')
    with pytest.raises(UserError, match=r"looks\.json"):
        count_look(path, FIRST)
    assert path.read_text() == '{"look": []}'
