"""The export stage: its options, its files, and its record of exports."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.export import main
from medaug.imaging.nifti import write_volume
from medaug.options import ExportOptions, Options
from medaug.paths import stage_folder
from medaug.runs import finish
from medaug.synthesis.pairs import Pairs

SCHEMA = LabelSchema(((0, "background"), (3, "lesion")))


def cohort(root) -> Manifest:
    cases = []
    for name in ("one", "two"):
        write_volume(root / f"{name}.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
        write_volume(root / f"{name}_seg.nii.gz", np.full((3, 4, 5), 3, np.uint8), np.eye(4))
        cases.append(Case(name, (f"{name}.nii.gz",), f"{name}_seg.nii.gz", name))
    manifest = Manifest("toy", "", ("MR",), SCHEMA, tuple(cases), str(root))
    manifest.save(root / "manifest.json")
    return manifest


def options(tmp_path, **export) -> Options:
    experiment = export.pop("experiment", "")
    return Options(experiment=experiment, runs=str(tmp_path / "runs"), export=ExportOptions(**export))


@pytest.fixture
def pairs(tmp_path):
    folder = stage_folder(options(tmp_path, experiment="toy"), "generate")
    folder.mkdir(parents=True)
    for index, case in enumerate(cohort(folder).cases):
        recipe = Recipe(index, 0, case.name, case.subject, "real", {}, 1.0, "ddim", 1, 0.0, index, "0" * 64)
        files = {"name": case.name, "images": list(case.images), "label": case.label, "subjects": [case.subject]}
        provenance.append(folder / "provenance.jsonl", recipe.to_mapping() | files)
    finish(folder, {"pairs": 2})
    return Pairs.load(folder)


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_a_cohort_is_exported_without_an_experiment(tmp_path, layout):
    cohort(tmp_path)
    main(options(tmp_path, manifest=str(tmp_path / "manifest.json"), format=layout, out=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 2
    assert not (tmp_path / "runs").exists()
    (line,) = (tmp_path / "manifest.exports.jsonl").read_text().splitlines()
    assert json.loads(line) == {"out": str(tmp_path / "out"), "format": layout, "cases": 2, "digest": ""}


def test_every_export_of_pairs_is_recorded(tmp_path, pairs):
    outs = [tmp_path / "a", tmp_path / "b"]
    for out, layout in zip(outs, ("msd", "nnunet"), strict=True):
        main(options(tmp_path, experiment="toy", format=layout, out=str(out)))
    lines = (tmp_path / "runs/toy/exports.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"out": str(out), "format": layout, "cases": 2, "digest": pairs.digest}
        for out, layout in zip(outs, ("msd", "nnunet"), strict=True)
    ]


def test_an_export_killed_before_its_final_name_is_recorded(tmp_path, pairs, monkeypatch):
    """The same command then completes it, and notes it once; a line that was cut short is dropped."""
    record = tmp_path / "runs/toy/exports.jsonl"
    record.write_text('{"out": "/cut')

    def killed(*_):
        raise InterruptedError

    wanted = options(tmp_path, experiment="toy", out=str(tmp_path / "out"))
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("medaug.exporting.request.put_folder", killed)
        main(wanted)
    before = record.read_text()
    assert json.loads(before)["out"] == str(tmp_path / "out") and not (tmp_path / "out").exists()
    main(wanted)
    assert record.read_text() == before and (tmp_path / "out" / "dataset.json").exists()


def test_a_failed_export_is_not_recorded(tmp_path, pairs):
    pairs.manifest.label_path(pairs.manifest.cases[1]).unlink()
    with pytest.raises(UserError, match="two_seg.nii.gz"):
        main(options(tmp_path, experiment="toy", out=str(tmp_path / "out")))
    assert not (tmp_path / "runs/toy/exports.jsonl").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        ({"manifest": "x.json"}, "out=DIR is missing"),
        ({"out": "x"}, "nothing to export; give experiment=NAME for its synthetic pairs, or manifest=FILE"),
        ({"out": "x", "manifest": "x.json", "format": "tar"}, "export.format=tar: no such export format"),
        ({"out": "x", "manifest": "nowhere.json"}, "nowhere.json: no such file"),
        ({"out": "x", "manifest": "x.json", "sign_key": "no.pem"}, "no.pem: no such file"),
        ({"out": "x", "experiment": "toy"}, "no finished synthetic pairs"),
    ],
)
def test_invalid_exports_are_refused_with_one_line(tmp_path, export, reason):
    with pytest.raises(UserError, match=reason) as error:
        main(options(tmp_path, **export))
    assert "\n" not in str(error.value)
