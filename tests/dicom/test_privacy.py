from __future__ import annotations

import dataclasses
import gzip
import hashlib
import hmac
import itertools
import json
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import axial, ramp, uid, write_series
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from test_tree import box, draw_rtstruct, draw_seg

from medaug.cohort.schema import LabelSchema
from medaug.dicom.convert import ingest_dicom
from medaug.dicom.headers import scan_tree
from medaug.dicom.labels import list_structures
from medaug.dicom.privacy import (
    Private,
    identifying_terms,
    load_private,
    name_studies,
    pseudonym,
    save_private,
    scrub,
)
from medaug.dicom.tree import list_series
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.layouts.rules import Rules
from medaug.options import IngestOptions

SALT = "ab" * 32


def test_a_pseudonym_is_a_keyed_hash() -> None:
    digest = hmac.digest(bytes.fromhex(SALT), b"P1", "sha256").hex()
    assert pseudonym(SALT, "P1") == "S" + digest[:10]
    assert pseudonym(SALT, "P1") != pseudonym("cd" * 32, "P1") != hashlib.sha256(b"P1").hexdigest()


@given(st.dictionaries(st.integers(0, 50).map(str), st.sampled_from(["", "A", "B"])), st.randoms())
def test_names_are_unique_and_do_not_depend_on_the_order(patients: dict[str, str], random: Any) -> None:
    names = name_studies(patients, Private(SALT))
    shuffled = list(patients.items())
    random.shuffle(shuffled)
    assert name_studies(dict(shuffled), Private(SALT)) == names
    assert len({name.case for name in names.values()}) == len(patients)
    assert len({name.subject for name in names.values()}) == len(set(patients.values()) - {""}) + sum(
        not patient for patient in patients.values()
    )


def test_known_studies_keep_their_names() -> None:
    patients = dict.fromkeys("uvw", "A")
    before = name_studies({"w": "A"}, Private(SALT))["w"]
    known = Private(SALT, cases={before.case: {"study": "w", "subject": before.subject}})
    after = name_studies(patients, known)
    assert after["w"] == before and len({name.case for name in after.values()}) == 3
    assert name_studies({"w": "B"}, known)["w"].subject == pseudonym(SALT, "B")  # the header was corrected


def test_the_private_file_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x" / "cohort.private.json"
    modes = []
    original = os.fsync

    def watched(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        original(handle)

    monkeypatch.setattr(os, "fsync", watched)
    previous = os.umask(0)
    try:
        private = load_private(path)
        save_private(path, private)
        path.chmod(0o644)
        save_private(path, private)
    finally:
        os.umask(previous)
    assert modes == [0o600, 0o600] and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_private(path) == private and len(bytes.fromhex(private.salt)) == 32
    assert load_private(tmp_path / "other").salt != private.salt


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "x",
        '{"format": 1, "salt": 3}',
        '{"format": 2, "salt": "ab"}',
        '{"format": 1, "salt": "zz", "subjects": {}, "cases": {}, "problems": []}',
        '{"format": 1, "salt": "", "subjects": {}, "cases": {}, "problems": []}',
    ],
)
def test_a_damaged_private_file_is_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError, match="p.json"):
        load_private(path)
    assert path.read_text() == content


def test_a_salt_never_replaces_another(tmp_path: Path) -> None:
    """Two processes on a file system without locks: the second one's pseudonyms would be unexplained."""
    path = tmp_path / "p.json"
    first, second = load_private(path), load_private(path)
    assert first.salt != second.salt
    save_private(path, first)
    with pytest.raises(UserError, match="another ingest has written its private file there meanwhile, which is kept"):
        save_private(path, second)
    assert load_private(path) == first
    save_private(path, dataclasses.replace(first, subjects={"S1": "ID"}))
    path.write_text("damaged")
    with pytest.raises(UserError, match="restore it"):
        save_private(path, first)


def test_scrubbing() -> None:
    terms = {"Li", "Zebra", "QX-77"}
    assert scrub("T1 zebra_LI line QX-77qx-77", terms) == "T1 [removed]_[removed] line [removed][removed]"
    assert scrub("", terms) == "" and scrub("FLAIR", []) == "FLAIR"


def test_a_name_inside_a_field_word_is_kept() -> None:
    assert scrub("cerebellum Bell, dr_bell1", {"Bell"}) == "cerebellum [removed], dr_[removed]1"
    assert scrub("brain rain", {"rain"}) == "brain [removed]"


@pytest.mark.parametrize(
    ("patient", "name", "message"),
    [
        ("SARCOMA_1_X025_CT", "GTV_Mass_CT", "GTV_Mass_CT"),
        ("SARCOMA_1_X025_CT", "SARCOMA_1_X025_CT_mask", "SARCOMA_[removed]_CT_mask"),
        ("Qrs_1_X025_MR_T1", "Qrs_1_X025_MR_T1_image", "[removed]_MR_T1_image"),
        ("Qrs_1_X025_MR_T1", "x025 of QRS on mr, T1", "[removed] of [removed] on mr, T1"),
        ("Lung-Qrs-7", "Lung_L qrs 7", "Lung_L [removed] 7"),
        ("Qrs 30", "GTV30 30 qrs", "GTV30 30 [removed]"),
        ("CT-7", "CT-7 of CT 7", "[removed] of CT 7"),
        ("CT", "CT", "CT"),
        ("Doe^Jane^^MR", "MR T1 of Jane Doe", "MR T1 of [removed] [removed]"),
        ("Gray^Rose", "Gray matter", "[removed] matter"),
        ("Breast^Boost", "Breast, boost", "Breast, [removed]"),
        ("Brain and Qrs Center", "head and neck", "head and neck"),
    ],
)
@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "InstitutionName", "StationName"])
def test_field_words_stay_where_a_header_uses_them_as_a_name(
    tmp_path: Path, keyword: str, patient: str, name: str, message: str
) -> None:
    if keyword == "StationName" and len(patient) > 16:
        pytest.skip("longer than the element allows")
    path = write_series(tmp_path, ramp(), **{keyword: patient})[0]
    assert scrub(name, identifying_terms([path])) == message


@pytest.mark.slow
def test_names_of_real_regions_stay_readable(medaug_data: Path) -> None:
    root = medaug_data / "STS" / "dicom"
    if not root.is_dir():
        pytest.skip("no soft-tissue sarcomas in MEDAUG_DATA")
    names = list_structures(scan_tree(root, 1))
    assert names == '"GTV_Mass_CT" (3), "GTV_Mass_MR_T1" (3), "GTV_Mass_PET" (3)'
    listed = list_series(scan_tree(root, 1))
    assert all(f'"[removed]_{kind}_image"' in listed for kind in ("CT", "MR_T1", "PET")) and "025" not in listed


def test_identifying_terms_of_a_header(tmp_path: Path) -> None:
    tags = {"PatientName": "Zebra^Quirin=Ideo^G", "OperatorsName": ["Op^One", "Op^Two"], "InstitutionName": "St. Xan"}
    path = write_series(tmp_path, ramp(), **tags)[0]
    assert {"Zebra", "Quirin", "Ideo", "One", "Two", "Xan", "MADE", "ACC0001", "19500101"} <= identifying_terms([path])
    assert identifying_terms([tmp_path / "absent", Path(__file__)]) == frozenset()


def test_names_are_found_in_damaged_headers_and_in_sequences(tmp_path: Path) -> None:
    path = write_series(tmp_path, ramp(), PatientName="Zebra^Quirin", RequestAttributesSequence=[Dataset()])[0]
    dataset = pydicom.dcmread(path)
    dataset.RequestAttributesSequence[0].RequestingPhysician = "Ottokar^Xan"
    dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), None
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, force_encoding=True)
    path.write_bytes(path.read_bytes().replace(b"1.25", b"1.2x"))  # SliceThickness
    assert {"Zebra", "Quirin", "Ottokar", "Xan"} <= identifying_terms([path])


# Planted words: none of them may be found anywhere, whole or in part.
NAMES = ("Quetzal^Zephyrine^Oonagh", "Wolframsky^Ygritte", "Operosa^Ximena")
TAGS = {
    "PatientName": NAMES[0],
    "PatientBirthDate": "19370713",
    "AccessionNumber": "ACCZ99817",
    "InstitutionName": "Hospizio Xanthos",
    "InstitutionAddress": "Kornblumenweg 17",
    "ReferringPhysicianName": NAMES[1],
    "OperatorsName": NAMES[2],
    "OtherPatientIDs": "OTHR55231",
    "StudyID": "STDY7741",
    "StationName": "STATN0042",
    "StudyDate": "20030317",
    "StudyDescription": "Kontrolle Quetzal",
    "PatientComments": "Cousin of Wolframsky",
    "ProtocolName": "prot Zephyrine",
}
PATIENT = "PLNT8812"
FOLDER, FILE = "Mappe_Vogelsang", "Bild_Nachtigall"
PLANTED = [
    *(text for key, text in TAGS.items() if key not in {"StudyDescription", "PatientComments", "ProtocolName"}),
    *(part for name in NAMES for part in name.split("^")),
    *(joint.join(reversed(name.split("^"))) for name in NAMES for joint in "^ _,"),
    *("Xanthos", "Kornblumenweg", PATIENT, "Vogelsang", "Nachtigall", "13.07.1937", "1937-07-13"),
]


def hostile_tree(root: Path) -> None:
    """Patients with every kind of fault, all under identifying names."""
    numbers = itertools.count(1)

    def series(folder: str, patient: str, description: str = "T1 Quetzal", **tags: Any) -> list[Path]:
        number = next(numbers)
        name = f"{FILE}_{number}_{{}}".format
        tags = {**TAGS, "SeriesDescription": description, "PatientID": PATIENT + patient, **tags}
        return write_series(root / FOLDER / folder, ramp(), number=number, names=name, **tags)

    good = series("good Quetzal", "A", IrradiationEventUID="Quetzal")
    draw_seg(good[0].parent / f"{FILE}.seg", good, {"core Zephyrine": box(), "Quetzal scalp": box(low=3)})
    draw_rtstruct(good[0].parent / f"{FILE}.rt", good, ["oedema", "Wolframsky"])
    series("gap", "B")[1].unlink()
    series("two", "C")
    series("two", "C")
    series("none", "D", "scout Quetzal")
    series("mixed", "E", StudyInstanceUID=uid("mixed"))
    series("mixed", "F", "T2 Quetzal", StudyInstanceUID=uid("mixed"))
    series("nobody", "", PatientID="", StudyInstanceUID=uid("nobody"))
    cut = series("cut", "G")[0]
    cut.write_bytes(cut.read_bytes()[:-50])
    (cut.parent / f"{FILE}_empty.dcm").touch()
    (cut.parent / f"{FILE}_bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Quetzal" * 9)
    readers = series("readers", "H")
    draw_seg(readers[0].parent / f"{FILE}_s1", readers, {"core": box()}, 91)
    draw_seg(readers[0].parent / f"{FILE}_s2", readers, {"core": box()}, 92)
    unknown = series("unknown", "I")
    draw_seg(unknown[0].parent / f"{FILE}_s3", unknown, {"Zephyrine": box()})
    broken = draw_seg(unknown[0].parent.parent / "broken" / FILE, series("broken", "J"), {"core": box()})
    dataset = pydicom.dcmread(broken)
    dataset.SegmentSequence[0].SegmentNumber = 7
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(broken)
    lost = series("lost", "K", "scout")
    draw_seg(lost[0].parent / f"{FILE}_s4", lost, {"core": box()})
    frame = draw_seg(root / FOLDER / "frame" / "s5", series("frame", "L"), {"core": box()})
    dataset = pydicom.dcmread(frame)
    dataset.FrameOfReferenceUID, dataset.IrradiationEventUID = uid("another"), "Quetzal"
    dataset.save_as(frame)
    series("grid/a", "M")
    series("grid/b", "M", "T2 Quetzal", ImageOrientationPatient=["1", "0", "0", "0", "0.9999996", "0.0008"])


def with_niftis(root: Path) -> None:
    for folder, patient in (("label", "N"), ("near/a", "O"), ("near/b", "P"), ("rubbish", "Q")):
        tags = {**TAGS, "SeriesDescription": "T1", "PatientID": PATIENT + patient}
        write_series(root / FOLDER / folder, ramp(), names=f"{FILE}_{{}}".format, **tags)
    write_volume(root / FOLDER / "label" / f"{FILE}.nii.gz", box().astype(np.uint8), axial(origin=(1, 2, 3)))
    write_volume(root / FOLDER / "near" / f"{FILE}.nii.gz", box().astype(np.uint8), axial())
    (root / FOLDER / "rubbish" / f"{FILE}.nii.gz").write_bytes(gzip.compress(b"Quetzal"))


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        yield "the name of a file", str(path.relative_to(folder)).encode()
        if path.is_file() and not path.name.endswith(".private.json"):
            content = path.read_bytes()
            yield path.name, content
            if path.suffix == ".gz":
                yield f"{path.name}, unpacked", gzip.decompress(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "label", "expected"),
    [
        (
            hostile_tree,
            None,
            "gap two-series study-not-used two-patients no-patient-id cut-short unreadable two-labels label "
            "label-names label-unlinked label-frame missing-modality not-used",
        ),
        (with_niftis, "**/*.nii.gz", "label-grid label-ambiguous label"),
    ],
)
def test_no_planted_name_is_printed(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    build: Callable[[Path], None],
    label: str | None,
    expected: str,
) -> None:
    root, out = tmp_path / "in" / "Vogelsang", tmp_path / "out" / "cohort.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(root)
    schema = LabelSchema(((0, "background"), (1, "oedema"), (2, "core")))
    rules = {"label": label, "structures": {"oedema": "oedema", "core": "core"}}
    message: list[tuple[str, bytes]] = []
    capfd.readouterr()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    codes = set()
    for name, modalities, overrides in (
        ("all", {"T1": {"SeriesDescription": "t1"}}, {}),
        ("resampled", {"T1": {"SeriesDescription": "t1"}}, {"on_gap": "resample", "on_grid": "resample"}),
        ("two", {"T1": {"SeriesDescription": "t1"}, "T2": {"SeriesDescription": "t2"}}, {}),
        ("listing", {}, {}),
        ("structures", {"T1": {"SeriesDescription": "t1"}}, None),
    ):
        place = out.with_name(f"{name}.json")
        made = Rules(modalities=modalities, **(rules if overrides is not None else {}))
        options = IngestOptions(workers=1, **(overrides or {}))
        try:
            with ingest_dicom(root, made, schema if overrides is not None else None, options, place) as result:
                findings = [f.to_mapping() for f in result.findings]
                place.with_suffix(".report.json").write_text(json.dumps(findings, ensure_ascii=False))
                for finding in result.findings:
                    logging.getLogger("medaug").error("%s", finding)
                if result.manifest.cases:
                    result.keep().save(place)
            codes |= {finding.code for finding in result.findings}
        except UserError as error:
            assert name in {"listing", "structures"}
            message.append((name, str(error).encode()))
    assert {f"dicom-{code}" for code in expected.split()} <= codes
    captured = capfd.readouterr()
    message += [("stdout", captured.out.encode()), ("stderr", captured.err.encode()), ("log", caplog.text.encode())]
    searched = [*message, *texts(out.parent)]
    assert any("unpacked" in where for where, _ in searched) and PATIENT.encode() not in b"".join(t for _, t in message)
    private = (out.parent / "all.private.json").read_text()
    assert PATIENT in private and FILE in private  # checks that the search can find the words
    found = {
        (word, where)
        for where, content in searched
        for word in PLANTED
        if word.lower().encode() in content.lower() or word.encode("utf-16-le") in content
    }
    assert not found
