"""Only the private file identifies patients, and everything made with a patient's data can be listed."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import axial, write_series
from dicom_tree import FLAIR, RULES, T1, head, write_duplicate, write_patient, write_rules
from ingest_files import one_worker, snapshot
from pydicom.uid import PYDICOM_ROOT_UID
from test_bad_input import assert_refused
from warm_python import run_module

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume

Done = subprocess.CompletedProcess[str]
ROOT_NAME = "Poltergeist_ward"
NUM = 10
# Each occurs in the trees below: in headers, in names of segments, files or folders.
PLANTED = (
    "Quackenbush", "Zebulon", "ZQX-77193", "1937041", "ACN5551", "Wolpertinger", "Drosselbart", "Ottokar", "Hagestolz",
    "Kaltenegger", "Poltergeist", "Mausefall", "OID88127", PYDICOM_ROOT_UID,
)  # fmt: skip


def run_stage(home: Path, stage: str, *words: str) -> Done:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return run_module(f"medaug.{stage}", one_worker(stage, words), home, env, timeout=600)


def tags(index: int) -> dict[str, Any]:
    return {
        "PatientID": f"ZQX-77193-{index}",
        "PatientName": f"Quackenbush^Zebulon^{index}",
        "PatientBirthDate": f"1937041{index % 10}",
        "OtherPatientIDs": f"OID88127{index}",
        "AccessionNumber": f"ACN5551{index}",
        "InstitutionName": "Wolpertinger Clinic",
        "ReferringPhysicianName": "Drosselbart^Ottokar",
        "PatientComments": "brother of Hagestolz",
        "StudyDescription": "requested by Kaltenegger",
    }


def write_people(root: Path, num: int = NUM) -> None:
    """A good tree with labels of every kind, and names of people in every field that can hold one."""
    kinds = ("seg", "rtstruct", "nifti", "labelmap", "ring")
    for index in range(num):
        folder = root / f"Quackenbush{index} Zebulon" / "Mausefall"
        kind = kinds[index % len(kinds)]
        write_patient(folder, index, kind, names="quackenbush_{}", **tags(index))
        if kind == "nifti":
            image = nib.load(folder / "label.nii.gz")
            image.header["descrip"] = b"Quackenbush Zebulon"
            nib.save(image, folder / "label.nii.gz")
    extra = write_series(
        root / "x", head(98), number=5, names="ZQX-77193-0_{}".format, SeriesDescription="of Zebulon", **tags(0)
    )
    for path in extra[:1]:  # readers quote this value in a warning
        path.write_bytes(path.read_bytes().replace(b"19370410", b"1937041x"))


def write_faulty_people(root: Path) -> set[str]:
    """A tree with faults of many kinds; returns the codes of the expected findings."""
    write_people(root, 5)

    def folder(index: int) -> Path:
        return root / f"Zebulon {index}" / "Quackenbush"

    def patient(index: int, label: str | None = None, **more: Any) -> Any:
        return write_patient(folder(index), index, label, names="quackenbush_{}.dcm", **tags(index) | more)

    patient(20).images[0][3].unlink()
    write_duplicate(patient(21).images[1][2], folder(21) / "Quackenbush copy.dcm")
    cut = patient(22).images[0][5]
    cut.write_bytes(cut.read_bytes()[:-50])
    for path in patient(23).images[1]:
        path.unlink()
    patient(24)
    write_series(
        folder(24), head(48), number=3, names="zebulon{}".format, SeriesDescription=f"{FLAIR} Zebulon", **tags(24)
    )
    patient(25, "seg", segments=("lesion of Quackenbush", "Zebulon"))
    patient(26, "seg")
    for number, (array, description) in enumerate(((head(52), T1), (head(53), FLAIR)), 1):
        prefix = ("t1", "flair")[number - 1]
        write_series(
            folder(26), array, axial((1.0, 1.2, 3.0), (20, 30, -8)), number=number, SeriesDescription=description,
            names=f"{prefix}_quackenbush_{{}}.dcm".format, **tags(26),
        )  # fmt: skip
    patient(27)
    write_volume(folder(27) / "label_Quackenbush.nii.gz", np.full((20, 18, 10), 7, np.uint8), axial((1.0, 1.2, 3.0)))
    patient(28)
    (folder(28) / "label_Zebulon.nii.gz").write_bytes(b"Quackenbush")
    patient(
        29,
        "rtstruct",
        segments=(
            "Whole Quackenbush",
            "Core Zebulon",
        ),
    )
    structures = folder(29) / "label_rt.dcm"
    number = str(pydicom.dcmread(structures).ROIContourSequence[0].ContourSequence[0].ContourData[0].original_string)
    structures.write_bytes(
        structures.read_bytes().replace(number.encode(), b"Zebulon".ljust(len(number))[: len(number)])
    )
    (root / "Quackenbush.dcm").touch()
    (root / "Zebulon.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Quackenbush" * 9)
    patient(30, PatientID=None)
    write_series(root / "Zebulon", head(62), SeriesDescription="Zebulon", names="q{}".format, **tags(31))
    return {
        "dicom-gap", "dicom-duplicate-slices", "dicom-cut-short", "dicom-missing-modality", "dicom-two-series",
        "dicom-label", "dicom-unreadable", "dicom-no-patient-id", "dicom-study-not-used",
    }  # fmt: skip


@dataclass
class Traces:
    """The commands that were run in a folder, and their output."""

    home: Path
    root: Path
    faulty: Path
    codes: set[str]
    done: dict[str, Done] = field(default_factory=dict)

    def run(self, stage: str, *words: str, name: str = "") -> Done:
        self.done[name or stage] = done = run_stage(self.home, stage, *words, "umask=077")
        return done


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> Iterator[Traces]:
    top = tmp_path_factory.mktemp("privacy")
    home, root, faulty = top / "work", top / ROOT_NAME, top / f"{ROOT_NAME}_2"
    home.mkdir()
    (home / "tmp").mkdir()
    write_people(root)
    made = Traces(home, root, faulty, write_faulty_people(faulty))
    write_rules(home)
    (home / "none.yaml").write_text("modalities: {}\n")
    (home / "unlabelled.yaml").write_text(f"modalities: {json.dumps(RULES['modalities'])}\n")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
            patch.setenv(key, str(home / "tmp"))
        common = ("rules=rules.yaml", "report=report.json")
        made.run("ingest", f"root={root}", *common, "folds=2", "out=cohort.json")
        made.run(
            "ingest", f"root={faulty}", "rules=rules.yaml", "out=bad.json", "report=bad_report.json", name="faulty"
        )
        made.run("ingest", f"root={root}", "rules=none.yaml", "layout=dicom", "out=x.json", name="no modalities")
        made.run("ingest", f"root={root}", "rules=unlabelled.yaml", "out=x.json", name="no labels")
        made.run("ingest", f"root={root}", "rules=rules.yaml", "out=y.json", "test_fraction=0.9", name="split")
        model = ("experiment=hippocampus", "preset=smoke")
        made.run("train", *model, "data.manifest=cohort.json", "data.roots=[]", "data.shape=null")
        for stage, *words in (("generate",), ("audit",), ("benchmark", "seeds=[0]"), ("export", "out=exported")):
            made.run(stage, *model, *words)
        made.run("export", "manifest=cohort.json", "format=nnunet", "out=nnunet", name="export cohort")
    yield made


def png_chunks(raw: bytes, kind: bytes) -> Iterator[bytes]:
    """The data of all chunks of a kind: a chunk is its length, its kind, the data and a checksum."""
    at = 8
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4])
        if raw[at + 4 : at + 8] == kind:
            yield raw[at + 8 : at + 8 + length]
        at += 12 + length


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file, and its content after decompression."""
    raw = path.read_bytes()
    yield str(path), raw
    if path.suffix == ".gz":
        yield f"{path} unpacked", gzip.decompress(raw)
    elif zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path} {name}", archive.read(name)
    elif path.suffix == ".png":
        yield f"{path} pixels", zlib.decompress(b"".join(png_chunks(raw, b"IDAT")))


def betrayed(where: str, content: bytes) -> list[str]:
    lowered = content.lower()
    return [f"{word} in {where}" for word in PLANTED if word.lower().encode() in lowered]


@pytest.mark.slow
def test_every_stage_runs_and_every_fault_is_found(traces):
    refused = {"faulty", "no modalities", "no labels", "split"}
    codes = {name: done.returncode for name, done in traces.done.items()}
    assert codes == {name: 2 if name in refused else 0 for name in codes}, traces.done
    for name in refused:
        assert_refused_anywhere(traces.done[name])
    report = json.loads((traces.home / "bad_report.json").read_text())
    found = {finding["code"] for finding in report["findings"]}
    assert traces.codes <= found, traces.codes - found
    assert "[removed]" in traces.done["no modalities"].stderr + traces.done["faulty"].stderr


def assert_refused_anywhere(done: Done) -> None:
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("medaug ingest: error: ") for line in done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_no_output_names_a_patient(traces):
    found = []
    for name, done in traces.done.items():
        found += betrayed(f"what {name} message", (done.stdout + done.stderr).encode())
    count = 0
    for path in traces.home.rglob("*"):
        found += betrayed("a name", str(path.relative_to(traces.home)).encode())
        if path.is_file() and not path.name.endswith(".private.json"):
            for where, content in contents(path):
                count += 1
                found += betrayed(where, content)
    assert not found and count > 100
    # Check that the search can find the words.
    private = (traces.home / "cohort.private.json").read_bytes().lower()
    assert all(word.lower().encode() in private for word in ("ZQX-77193", "Poltergeist", "Mausefall", "Quackenbush"))
    kinds = {path.suffix for path in (traces.home / "runs").rglob("*")}
    assert {".ckpt", ".gz", ".json", ".png", ".html", ".csv", ".jsonl"} <= kinds, kinds


@pytest.mark.slow
def test_all_files_are_private_with_umask(traces):
    written = [traces.home / name for name in ("cohort", "runs", "exported", "nnunet")]
    written += [path for top in written for path in top.rglob("*")]
    written += traces.home.glob("*.json*")
    assert len(written) > 100
    assert [str(path) for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.slow
def test_the_private_file_is_the_owners_and_maps_pseudonyms(traces):
    for name, root in (("cohort", traces.root), ("bad", traces.faulty)):
        path = traces.home / f"{name}.private.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        known = json.loads(path.read_text())
        assert len(bytes.fromhex(known["salt"])) == 32
        files = [file for case in known["cases"].values() for file in case["files"]]
        assert files and all(Path(file).is_relative_to(root) for file in files)
        assert all(subject.startswith("S") and len(subject) == 11 for subject in known["subjects"])
    cohort, known = (json.loads((traces.home / f"cohort{end}.json").read_text()) for end in ("", ".private"))
    assert {known["subjects"][case["subject"]] for case in cohort["training"]} == {
        tags(i)["PatientID"] for i in range(NUM)
    }
    problems = json.loads((traces.home / "bad.private.json").read_text())["problems"]
    report = json.loads((traces.home / "bad_report.json").read_text())["findings"]
    explained = {(p["case"], p["code"], p["what"]) for p in problems}
    assert {(f["case"], f["code"], f["what"]) for f in report if f["code"].startswith("dicom-")} == explained
    assert (traces.root / "x").is_dir() and not (traces.home / "bad.json").exists()


@pytest.mark.slow
def test_a_pseudonym_lasts_as_long_as_its_private_file(traces, tmp_path):
    shutil.copy(traces.home / "cohort.private.json", tmp_path / "kept.json")
    words = ("ingest", f"root={traces.root}", f"rules={traces.home / 'rules.yaml'}", "check=none")
    first = Manifest.load(traces.home / "cohort.json")
    for out, more in (("again", ["private=kept.json"]), ("other", [])):
        done = run_stage(tmp_path, *words, f"out={out}.json", *more)
        assert done.returncode == 0, done.stderr
    again, other = (Manifest.load(tmp_path / f"{name}.json") for name in ("again", "other"))
    assert {(c.name, c.subject) for c in again.cases} == {(c.name, c.subject) for c in first.cases}
    assert not {c.subject for c in other.cases} & {c.subject for c in first.cases}
    assert not (tmp_path / "again.private.json").exists()
    assert stat.S_IMODE((tmp_path / "kept.json").stat().st_mode) == 0o600
    plain = run_stage(tmp_path, *words, "out=plain.json", "pseudonyms=false")
    assert plain.returncode == 0, plain.stderr
    assert {c.subject for c in Manifest.load(tmp_path / "plain.json").cases} == {
        tags(i)["PatientID"] for i in range(NUM)
    }


@pytest.mark.slow
def test_withdrawal_lists_everything_by_either_name_and_touches_nothing(traces):
    known = json.loads((traces.home / "cohort.private.json").read_text())["subjects"]
    cohort = Manifest.load(traces.home / "cohort.json")
    before = snapshot(traces.home)
    listed = {}
    for split in ("train", "test"):
        case = next(case for case in cohort.cases if case.split == split)
        lines = []
        for subject in (case.subject, known[case.subject]):
            done = run_stage(traces.home, "ingest", f"withdraw={subject}", "out=cohort.json", "runs=runs")
            assert done.returncode == 0, done.stderr
            assert betrayed("withdraw", (done.stdout + done.stderr).encode()) == []
            lines.append([line[9:] for line in done.stderr.splitlines()])
        assert lines[0] == lines[1]
        assert lines[0][-1] == f"{len(lines[0]) - 1} artefacts; nothing was deleted"
        listed[split] = {tuple(line.split(": ")[:2]) for line in lines[0][:-1]}
        files = {*case.images, *([case.label] if case.label else [])}
        assert {("scan", str(Path(cohort.root, file))) for file in files} <= listed[split]
        assert {("private", "cohort.private.json"), ("manifest", "cohort.json")} <= listed[split]
    kinds = {split: {kind for kind, _ in found} for split, found in listed.items()}
    assert {"cache", "checkpoint", "log", "pairs", "audit", "benchmark", "export"} <= kinds["train"]
    assert "checkpoint" not in kinds["test"] and "benchmark" in kinds["test"]
    assert ("checkpoint", "runs/hippocampus/train/last.ckpt") in listed["train"]
    done = run_stage(traces.home, "ingest", "withdraw=Kaltenegger", "out=cohort.json", "runs=runs")
    assert_refused(done, "ingest", "contains that subject")
    assert betrayed("withdraw", done.stderr.encode()) == []
    assert snapshot(traces.home) == before
