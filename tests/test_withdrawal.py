from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.comparison.scores import COLUMNS as SCORE_COLUMNS
from medaug.csv_files import write_csv
from medaug.data.cache import add_owner, write_entry
from medaug.data.preprocessing import Preprocessing
from medaug.dicom.privacy import Private, save_private
from medaug.errors import UserError
from medaug.files import file_sha256, write_json
from medaug.runs import claim, finish
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Base, Card
from medaug.withdrawal import withdraw

SCHEMA = LabelSchema(((0, "background"), (1, "core")))
SUBJECTS = {"Sa": "train", "Sb": "train", "Sc": "val", "Sd": "test"}
CARD = Card(
    experiment="demo",
    options=model_options(),
    preprocessing=Preprocessing((8, 8, 8), (1.0, 1.0, 1.0), (0.5, 99.5)),
    schema=SCHEMA,
    modalities=("T1",),
    subjects={"train": ["Sa", "Sb"], "val": ["Sc"]},
    phantom=False,
)
WEIGHTS = {f"model.{name}": value for name, value in CARD.build().state_dict().items()}
PRIVATE = Private(
    "00" * 32,
    subjects={"Sa": "ID-A", "Sb": "ID-B", "Sz": "ID-Z"},
    cases={"Sa_1": {"subject": "Sa", "study": "1", "series": {}, "files": []}},
)


def cohort(root: Path, subjects: dict[str, str] = SUBJECTS) -> Manifest:
    cases = tuple(
        Case(f"{s}_1", (f"images/{s}_1_T1.nii.gz",), f"labels/{s}_1.nii.gz", s, k) for s, k in subjects.items()
    )
    return Manifest("cohort", "", ("T1",), SCHEMA, cases, str(root))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cohort with its private file, report and folds, and an experiment with the results of all stages."""
    cohort(tmp_path / "cohort").save(tmp_path / "cohort.json")
    save_private(tmp_path / "cohort.private.json", PRIVATE)
    (tmp_path / "cohort.report.json").write_text(json.dumps([{"case": "Sa_1", "what": "x"}]))
    (tmp_path / "other.json").write_text(json.dumps(["Sa_10", "Sab"]))
    demo = tmp_path / "runs" / "demo"
    train, synthetic = demo / "train", demo / "synthetic"
    (train / "pictures").mkdir(parents=True)
    cohort(tmp_path / "cohort").save(train / "manifest.json")
    torch.save({"medaug": CARD.to_dict(), "state_dict": WEIGHTS}, train / "last.ckpt")
    digest = file_sha256(train / "last.ckpt")
    for key, name in (("k1", "Sa"), ("k2", "Sb")):
        write_entry(demo / "cache" / key, np.zeros((1, 2, 2, 2), np.float32), None, {"owners": []})
        add_owner(demo / "cache" / key, {"case": f"{name}_1", "subject": name})
    claim(synthetic, {"checkpoint": digest}, False)
    for index, subject in enumerate(("Sa", "Sb")):
        recipe = Recipe(index, 0, f"{subject}_1", subject, "real", {}, 1.0, "ddim", 1, 0.0, 0, digest)
        files = {
            "name": f"p{index}",
            "images": [f"imagesTr/p{index}_0000.nii.gz"],
            "label": f"labelsTr/p{index}.nii.gz",
        }
        provenance.append(synthetic / "provenance.jsonl", recipe.to_mapping() | files | {"subjects": [subject]})
    Pairs.collect(CARD, synthetic, 2).manifest.save(synthetic / "manifest.json")
    finish(synthetic, {})
    line = {"out": "/somewhere/nnunet", "format": "nnunet", "digest": Pairs.load(synthetic).digest}
    (demo / "exports.jsonl").write_text(json.dumps(line) + '\n{"out": "/cut')
    claim(demo / "audit", {"checkpoint": digest}, False)
    (demo / "audit" / "judge.pt").touch()
    rows = [("real_validation", "Sc_1", "Sc", 0.5), ("synthetic", "p0", "Sa", 0.5)]
    write_csv(demo / "audit" / "faithfulness.csv", ("images", "case", "subject", "dice"), rows)
    claim(demo / "benchmark", {"checkpoint": digest}, False)
    scores = demo / "benchmark" / "jobs" / "real" / "seed_0" / "scores.csv"
    scores.parent.mkdir(parents=True)
    write_csv(scores, SCORE_COLUMNS, [("real", 0, "Sd_1", "core", "dice", 0.5)])
    (demo / "benchmark" / "report.html").touch()
    return tmp_path


def listed(home: Path, subject: str, **options: Path | None) -> set[tuple[str, str]]:
    files = {"private": home / "cohort.private.json", "manifest": home / "cohort.json"} | options
    found = withdraw(subject, home / "runs", **files)
    names = [str(artefact.path).removeprefix(f"{home}/").removeprefix("runs/demo/") for artefact in found]
    assert all(artefact.certain for artefact in found) and "ID-" not in str(found)
    return {(artefact.kind, name) for artefact, name in zip(found, names, strict=True)}


MODEL = {
    ("checkpoint", "train/last.ckpt"),
    ("log", "train/pictures"),
    ("pairs", "synthetic"),
    ("export", "/somewhere/nnunet"),
    ("audit", "audit/judge.pt"),
    ("audit", "audit/faithfulness.csv"),
    ("benchmark", "benchmark/jobs"),
    ("benchmark", "benchmark/report.html"),
}


def files(subject: str) -> set[tuple[str, str]]:
    images, labels = (
        f"cohort/{kind}/{subject}_1{end}" for kind, end in (("images", "_T1.nii.gz"), ("labels", ".nii.gz"))
    )
    return {("manifest", "cohort.json"), ("manifest", "train/manifest.json"), ("scan", images), ("scan", labels)}


def test_a_training_subject_is_related_to_everything(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    expected = files("Sa") | MODEL | {("private", "cohort.private.json"), ("record", "cohort.report.json")}
    expected |= {("cache", f"cache/k1.{part}") for part in ("json", "image.npy")}
    expected |= {("pair", "synthetic/imagesTr/p0_0000.nii.gz"), ("pair", "synthetic/labelsTr/p0.nii.gz")}
    assert listed(home, "Sa") == expected
    assert listed(home, "ID-A") == expected
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_a_validation_subject_is_in_what_the_model_made(home: Path) -> None:
    assert listed(home, "Sc") == files("Sc") | MODEL
    whys = {a.kind: a.why for a in withdraw("Sc", home / "runs")}
    assert whys["checkpoint"] == "a model that was validated on the subject"
    assert whys["pairs"] == "all pairs: made with a model that was validated on the subject"
    assert whys["audit"].startswith("holds scores of the subject's scans")


def test_a_test_subject_is_in_the_benchmark_alone(home: Path) -> None:
    expected = {("benchmark", "benchmark/jobs"), ("benchmark", "benchmark/report.html")}
    assert listed(home, "Sd") == files("Sd") | expected
    assert listed(home, "Sd", private=None, manifest=None) == expected | {("manifest", "train/manifest.json")}


def test_a_subject_that_was_renamed_is_found_by_its_cases(home: Path) -> None:
    subjects = dict(SUBJECTS)
    renamed = tuple(
        replace(case, subject="person 7") if case.subject == "Sa" else case for case in cohort(home, subjects).cases
    )
    replace(cohort(home / "cohort"), cases=renamed).save(home / "cohort.json")
    assert ("scan", "cohort/labels/Sa_1.nii.gz") in listed(home, "ID-A")


def test_a_model_whose_base_saw_the_subject_is_found(home: Path) -> None:
    path = home / "runs" / "demo" / "train" / "last.ckpt"
    for base in (None, Base("first", "0" * 64, {"train": ["Sa"], "val": []})):
        card = replace(CARD, subjects={"train": ["Sb"], "val": ["Sc"]}, base=base)
        torch.save({"medaug": card.to_dict(), "state_dict": WEIGHTS}, path)
        found = withdraw("Sa", home / "runs", manifest=home / "cohort.json")
        assert ("checkpoint" in {artefact.kind for artefact in found}) == (base is not None)


def test_a_codec_names_its_training_subjects(home: Path) -> None:
    torch.save({"medaug": CARD.to_dict(), "step": 1, "codec": {}}, home / "runs/demo/train/codec.ckpt")
    assert ("checkpoint", "train/codec.ckpt") in listed(home, "Sa")
    assert ("checkpoint", "train/codec.ckpt") not in listed(home, "Sd")


def test_a_pair_whose_mask_generator_saw_the_subject_is_found(home: Path) -> None:
    record = provenance.read_all(home / "runs/demo/synthetic")[1, 0] | {
        "index": 2,
        "name": "p2",
        "label": "labelsTr/p2",
    }
    record |= {"subjects": ["Sb", "Se"], "mask_validation_subjects": ["Sf"]}
    provenance.append(provenance.rank_file(home / "runs/demo/synthetic", 3), record)
    for subject in ("Se", "Sf"):
        found = {a.path.name for a in withdraw(subject, home / "runs") if a.kind == "pair"}
        assert found == {"p1_0000.nii.gz", "p2"}


def test_uncertain_artefacts_are_marked_as_such(home: Path) -> None:
    demo = home / "runs" / "demo"
    (demo / "cache" / "old.json").write_text('{"affine": []}')
    others = replace(CARD, subjects={"train": ["Sb"], "val": ["Sc"]})
    torch.save({"medaug": others.to_dict(), "state_dict": WEIGHTS}, demo / "train" / "last.ckpt")
    cohort(home, {"Sb": "train", "Sc": "val"}).save(demo / "train" / "manifest.json")
    found = withdraw("Sd", home / "runs", manifest=home / "cohort.json")
    unsure = {artefact.path for artefact in found if not artefact.certain}
    results = {
        demo / name for name in ("audit/judge.pt", "audit/faithfulness.csv", "benchmark/jobs", "benchmark/report.html")
    }
    assert unsure == {demo / "cache", demo / "synthetic", Path("/somewhere/nnunet")} | results
    assert {artefact.kind for artefact in found if artefact.certain} == {"manifest", "scan"}
    (demo / "train" / "last.ckpt").write_bytes(b"x")
    found = withdraw("Sb", home / "runs", manifest=home / "cohort.json")
    assert [a.certain for a in found if a.kind == "checkpoint"] == [False]
    assert {a.path.name for a in found if a.kind == "pair"} == {"p1_0000.nii.gz", "p1.nii.gz"}


@pytest.mark.parametrize("subject", ["Sx", "ID-A", ""])
def test_an_unknown_subject(home: Path, subject: str) -> None:
    (home / "runs" / "demo" / "cache" / "old.json").write_text("{}")
    with pytest.raises(UserError, match="contains that subject; ") as error:
        withdraw(subject, home / "runs", manifest=home / "cohort.json")
    assert "ID-A" not in str(error.value)


def test_a_subject_whose_ingest_failed_is_in_the_private_file_alone(home: Path) -> None:
    assert listed(home, "ID-Z") == {("private", "cohort.private.json")}


def test_files_that_are_not_there(home: Path) -> None:
    with pytest.raises(UserError, match="no such file; give private=FILE"):
        withdraw("Sa", home / "runs", private=home / "absent.json")
    with pytest.raises(UserError, match="contains that subject"):
        withdraw("Sa", home / "absent")


def test_a_copy_of_the_cohort_is_recorded(home: Path) -> None:
    (home / "cohort.exports.jsonl").write_text('{"out": "/elsewhere/msd", "format": "msd", "digest": ""}\n{"out": "/cu')
    assert ("export", "/elsewhere/msd") in listed(home, "Sa")


def test_the_private_file_is_listed_once_however_it_is_named(home: Path) -> None:
    private = home / "runs" / ".." / "cohort.private.json"
    found = withdraw("Sa", home / "runs", private=private, manifest=home / "cohort.json")
    assert [a.kind for a in found if a.path.name == "cohort.private.json"] == ["private"]


def test_jobs_of_a_sweep_are_searched_like_experiments(home: Path) -> None:
    demo, job = home / "runs" / "demo", home / "runs" / "sweep" / "trainer.seed=0" / "demo"
    single = {
        artefact.path.relative_to(demo) for artefact in withdraw("Sb", home / "runs") if demo in artefact.path.parents
    }
    job.parent.mkdir(parents=True)
    demo.rename(job)
    found = {artefact.path for artefact in withdraw("Sb", home / "runs")}
    assert single and found >= {job / path for path in single}


def test_a_report_that_names_the_subject_is_found_in_any_json_encoding(tmp_path: Path) -> None:
    cohort(tmp_path, {"Sé": "train"}).save(tmp_path / "cohort.json")
    write_json(tmp_path / "report.json", [{"case": "Sé_1"}])
    (tmp_path / "ascii.json").write_text(json.dumps([{"case": "Sé_1"}]))
    write_json(tmp_path / "other.json", ["Séb"])
    found = withdraw("Sé", tmp_path / "runs", manifest=tmp_path / "cohort.json")
    assert {a.path.name for a in found if a.kind == "record"} == {"report.json", "ascii.json"}


def test_named_sets_of_pairs_are_searched_like_those_without_a_name(home: Path) -> None:
    demo = home / "runs" / "demo"
    for name in ("synthetic", "audit", "benchmark"):
        shutil.copytree(demo / name, demo / f"{name}-strong")
    found = [
        artefact.path.relative_to(demo).as_posix()
        for artefact in withdraw("Sa", home / "runs")
        if demo in artefact.path.parents
    ]
    named = sorted(path.replace("-strong/", "/").removesuffix("-strong") for path in found if "-strong" in path)
    plain = sorted(path for path in found if path.split("/")[0] in {"synthetic", "audit", "benchmark"})
    assert named == plain and len(plain) > 3
