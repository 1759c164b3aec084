"""Fixtures that several rooms share.

Two things may be absent on a newcomer's machine: the real data and a browser. Their tests are skipped there;
where MEDAUG_CI=1 and MEDAUG_DATA are set they fail instead, so that nothing goes untested unnoticed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

# How long one example takes says more about who else is computing than about the code.
hypothesis.settings.register_profile("medaug", deadline=None)
hypothesis.settings.load_profile("medaug")


def _absent(reason: str) -> None:
    if os.environ.get("MEDAUG_CI") == "1" and os.environ.get("MEDAUG_DATA"):
        pytest.fail(f"may not be skipped here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def medaug_data() -> Path:
    """The folder of real data, which holds Task04_Hippocampus."""
    folder = os.environ.get("MEDAUG_DATA")
    if not folder:
        _absent("MEDAUG_DATA is not set")
    data = Path(folder or "").resolve()
    if not (data / "Task04_Hippocampus" / "dataset.json").is_file():
        _absent(f"{data} holds no Task04_Hippocampus/dataset.json")
    return data


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium-like browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    _absent("no chromium on this machine")
    raise AssertionError("unreachable")
