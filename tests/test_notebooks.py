"""The notebook's code runs in order, and its statements hold."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "first_look.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_first_look_runs_and_its_numbers_hold() -> None:
    matplotlib.use("Agg")
    namespace: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*non-interactive.*")  # plt.show without a window
        for number, cell in enumerate(cells("code")):
            exec(compile("".join(cell["source"]), f"first_look cell {number}", "exec"), namespace)
    namespace["plt"].close("all")

    assert namespace["round_trip_error"] < 1e-5
    assert all(set(namespace["CLASSES"]) <= set(phantom.label.flat) for phantom in namespace["phantoms"])
    deviations, truth = namespace["deviations"], namespace["S"]
    for name in ("ddpm", "ddim", "dpmpp_2m"):
        errors = [abs(deviations[name, steps] / truth - 1) for steps in (5, 10, 50)]
        assert errors == sorted(errors, reverse=True), f"{name}: more steps must come closer"
    # "comes closest at every number of steps shown"
    for steps in (5, 10, 50):
        assert min(("ddpm", "ddim", "dpmpp_2m"), key=lambda n: abs(deviations[n, steps] - truth)) == "dpmpp_2m"
    assert deviations["dpmpp_2m", 50] == pytest.approx(truth, rel=0.02)
    assert all(mean == pytest.approx(namespace["MU"], abs=0.02) for mean in namespace["means"].values())


def test_first_look_contains_its_output_and_is_small() -> None:
    outputs = [cell["outputs"] for cell in cells("code")[1:]]  # the first cell only imports
    assert all(outputs), "run the notebook again: make notebooks"
    assert not [o for cell in outputs for o in cell if o["output_type"] in ("error",) or o.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 400_000
