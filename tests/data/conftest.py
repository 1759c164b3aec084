"""A cohort of six scans, and the names of those that are read from their files."""

from __future__ import annotations

import pytest
from six_scans import write_six_scans

from medaug.data import cases as module
from medaug.data.cases import read_case


@pytest.fixture
def manifest(tmp_path):
    return write_six_scans(tmp_path / "data")


@pytest.fixture
def reads(monkeypatch):
    """The names of the cases that were read from the cohort's files."""
    names = []

    def counted(manifest, case):
        names.append(case.name)
        return read_case(manifest, case)

    monkeypatch.setattr(module, "read_case", counted)
    return names
