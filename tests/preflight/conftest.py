"""A good cohort, and checks that run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from faults import write_good_cohort

from medaug import preflight
from medaug.cohort import Manifest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_good_cohort(tmp_path_factory.mktemp("good"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process, because worker processes take seconds to start."""

    def isolated(function: Callable, items: Iterable, description: str, workers: int = 0) -> Iterator:
        return map(function, items)

    monkeypatch.setattr(preflight, "isolated", isolated)
