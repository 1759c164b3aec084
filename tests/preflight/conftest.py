"""A good cohort, and checks that run in this process."""

from __future__ import annotations

import pytest
from faults import one_by_one, write_good_cohort

from medaug import preflight
from medaug.cohort import Manifest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_good_cohort(tmp_path_factory.mktemp("good"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check without worker processes."""
    monkeypatch.setattr(preflight, "isolated", one_by_one)
