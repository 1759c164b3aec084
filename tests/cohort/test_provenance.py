"""Provenance: exact round trips, and a file that survives a killed writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort import provenance
from medaug.cohort.provenance import Recipe, append, rank_file, read, read_all
from medaug.errors import UserError

RECIPE = Recipe(
    index=3,
    attempt=1,
    host="hippocampus_001",
    host_subject="hippocampus_subject_001",
    mask_source="deformed",
    mask_parameters={"amplitude": 0.1, "grid": [4, 4, 4]},
    guidance_scale=1.5,
    sampler="dpmpp_2m",
    num_inference_steps=20,
    eta=0.0,
    seed=2**63,
    checkpoint="ab" * 32,
    spacing="karras",
    guidance_interval=[0.2, 0.8],
    guidance_rescale=0.7,
    negative_classes=["lesion"],
)


def _record(index: int, attempt: int = 0, **extra: Any) -> dict[str, Any]:
    recipe = replace(RECIPE, index=index, attempt=attempt)
    return {**recipe.to_mapping(), "subjects": [recipe.host_subject], **extra}


@given(
    host=st.text(),
    scale=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**64),
    parameters=st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
)
def test_recipe_round_trip_is_one_line(host: str, scale: float, seed: int, parameters: dict[str, Any]) -> None:
    recipe = replace(RECIPE, host=host, guidance_scale=scale, seed=seed, mask_parameters=parameters)
    line = recipe.to_json()
    assert "\n" not in line
    assert Recipe.from_json(line) == recipe
    assert Recipe.from_mapping({**recipe.to_mapping(), "verdict": "kept"}) == recipe


def test_a_recipe_without_a_required_field_is_refused() -> None:
    mapping = RECIPE.to_mapping()
    del mapping["eta"]
    with pytest.raises(UserError, match="eta missing"):
        Recipe.from_json(json.dumps(mapping))
    with pytest.raises(UserError, match="not JSON"):
        Recipe.from_json("{")


def test_an_older_recipe_gets_the_defaults_of_later_fields() -> None:
    mapping = RECIPE.to_mapping()
    for name in ("spacing", "guidance_interval", "guidance_rescale", "negative_classes"):
        del mapping[name]
    old = Recipe.from_mapping(mapping)
    assert (old.spacing, old.guidance_interval, old.guidance_rescale) == ("trailing", None, 0.0)
    assert old.negative_classes == [] and replace(old, spacing="karras").seed == RECIPE.seed


def test_append_and_read(tmp_path: Path) -> None:
    path = tmp_path / "synthetic" / "provenance.jsonl"
    assert read(path) == {}
    records = [
        _record(0, 0, verdict="rejected: copy"),
        _record(0, 1, verdict="kept"),
        _record(1, name="ü\u2028x"),
    ]
    for record in records:
        append(path, record)
    assert read(path) == {(0, 0): records[0], (0, 1): records[1], (1, 0): records[2]}
    append(path, _record(1, note="again"))
    assert read(path)[1, 0]["note"] == "again"


def test_a_file_cut_at_any_byte_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "provenance.jsonl"
    append(path, _record(0))
    first = path.stat().st_size
    append(path, _record(1))
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 7), first - 1, first, first + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:length])
        complete = {(0, 0): _record(0), (1, 0): _record(1)} if length == len(whole) else {(0, 0): _record(0)}
        complete = {} if length < first else complete
        assert read(path) == complete
        append(path, _record(2))
        assert read(path) == {**complete, (2, 0): _record(2)}


def test_a_full_disk_is_reported_and_writing_can_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "provenance.jsonl"
    append(path, _record(0))

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 5)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(provenance.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            append(path, _record(1))
    append(path, _record(2))
    assert list(read(path)) == [(0, 0), (2, 0)]


def test_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "provenance.jsonl"
    with pytest.raises(ValueError, match="subjects"):
        append(path, {"index": 0, "attempt": 0})
    with pytest.raises(ValueError, match="JSON"):
        append(path, _record(0, score=float("nan")))
    assert not path.exists()
    path.write_text('{"index": 0, "attempt": 0}\n[1]\n')
    with pytest.raises(UserError, match="line 2 is not a provenance record"):
        read(path)


_WRITER = """
import itertools, sys
from medaug.cohort.provenance import append
for index in itertools.count():
    append(sys.argv[1], {"index": index, "attempt": 0, "subjects": ["p"], "padding": "x" * 5000})
"""


def test_a_killed_writer_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "provenance.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 20
    while len(read(path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    kept = read(path)
    assert len(kept) >= 5
    assert list(kept) == [(index, 0) for index in range(len(kept))]
    append(path, _record(-1))
    assert list(read(path)) == [*kept, (-1, 0)]


def test_files_of_several_processes_are_read_together(tmp_path):
    assert read_all(tmp_path) == {}
    for rank, indices in ((3, (3, 7)), (0, (0, 4)), (10, (1,))):
        for index in indices:
            append(rank_file(tmp_path, rank), {"index": index, "attempt": 0, "subjects": ["S"], "rank": rank})
    assert rank_file(tmp_path, 0).name == "provenance.jsonl"
    with rank_file(tmp_path, 3).open("a") as file:
        file.write('{"index": 11, "att')  # killed
    found = read_all(tmp_path)
    assert list(found) == [(0, 0), (1, 0), (3, 0), (4, 0), (7, 0)], "in order, whoever wrote them"
    assert [record["rank"] for record in found.values()] == [0, 10, 3, 0, 3]
