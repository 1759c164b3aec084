"""Marks of synthetic files, and what `verify` says of files that were changed, moved, lost or signed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydicom.uid import ImplicitVRLittleEndian

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe, recipe_digest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.exporting.formats import WRITERS
from medaug.exporting.request import Export
from medaug.files import file_sha256
from medaug.imaging.nifti import write_volume
from medaug.launcher import run
from medaug.marking.signing import Signer
from medaug.marking.verification import verify
from medaug.options import Options, VerifyOptions
from medaug.verify import main

SHAPE = (5, 4, 3)
RECIPE = Recipe(0, 0, "host", "s1", "real", {}, 1.5, "ddim", 1, 0.0, 7, "ab" * 32)


def write_key(path: Path, key, password: bytes | None = None) -> Path:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of one synthetic pair with its provenance, its exports in three formats, and keys."""
    root = tmp_path_factory.mktemp("made")
    files = ("run/imagesTr/a.nii.gz", "run/labelsTr/a.nii.gz")
    for file in files:
        write_volume(root / file, np.arange(60).reshape(SHAPE).astype(np.int16) % 2, np.eye(4), "medaug synthetic")
    contents = {file.removeprefix("run/"): file_sha256(root / file) for file in files}
    case = Case("a", ("imagesTr/a.nii.gz",), "labelsTr/a.nii.gz", "s1")
    record = {**RECIPE.to_mapping(), "name": "a", "images": list(case.images), "label": case.label, "subjects": ["s1"]}
    provenance.append(root / "run/provenance.jsonl", {**record, "contents": contents, "version": "9.9"})
    schema = LabelSchema(((0, "background"), (1, "lesion")))
    manifest = Manifest("toy", "", ("MR",), schema, (case,), str(root / "run"))
    write_key(root / "key.pem", Ed25519PrivateKey.generate())
    write_key(root / "other.pem", Ed25519PrivateKey.generate())
    write_key(root / "locked.pem", Ed25519PrivateKey.generate(), b"secret")
    write_key(root / "x25519.pem", X25519PrivateKey.generate())
    for layout in ("msd", "nnunet", "dicom"):
        for signer, out in ((None, layout), (Signer.load(root / "key.pem"), f"signed_{layout}")):
            WRITERS[layout](Export(manifest, root / out, {"a": record}, signer=signer))
    return root


@pytest.fixture
def copy(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def states(path: Path, key: str | None = None) -> set[tuple[str, str, str]]:
    return {(one.origin, one.state, one.signature) for one in verify(path, key)}


@pytest.mark.slow
def test_every_exported_file_says_that_it_is_synthetic_and_by_which_recipe(made):
    for file in (*made.glob("msd/*Tr/a.nii.gz"), *made.glob("nnunet/*Tr/*.nii.gz")):
        note = bytes(nib.load(file).header["descrip"].item()).decode()
        assert note == f"medaug synthetic, recipe {recipe_digest(RECIPE.to_mapping())[:32]}"
        mark = json.loads(file.with_name(file.name.removesuffix(".nii.gz") + ".json").read_text())["medaug"]
        assert mark["sha256"] == file_sha256(file) and mark["recipe"] == RECIPE.to_mapping()
        assert mark["synthetic"] is True and mark["recipe_sha256"] == recipe_digest(RECIPE.to_mapping())
    assert len(list(made.glob("dicom/a/**/*.dcm"))) == SHAPE[2] + 1


@pytest.mark.parametrize("folder", ["run", "msd", "nnunet", "dicom"])
def test_a_folder_is_synthetic_and_unchanged(made, folder):
    found = verify(made / folder)
    assert len(found) == (SHAPE[2] + 1 if folder == "dicom" else 2)
    assert states(made / folder) == {("synthetic", "unchanged", "not signed")}
    assert all(one.recipe["checkpoint"] == "ab" * 32 and one.version for one in found)
    main(Options(verify=VerifyOptions(path=str(made / folder))))


@pytest.mark.parametrize("layout", ["msd", "nnunet", "dicom"])
def test_signatures_count_for_the_key_that_made_them(made, layout):
    folder = made / f"signed_{layout}"
    own, other = (Signer.load(made / name).sign(b"")["public_key"] for name in ("key.pem", "other.pem"))
    assert states(folder) == {("synthetic", "unchanged", "signed")}
    assert states(folder, own) == {("synthetic", "unchanged", "signed by your key")}
    assert states(folder, other) == {("synthetic", "unchanged", "wrongly signed")}
    main(Options(verify=VerifyOptions(path=str(folder), public_key=str(made / "key.pub"))))
    for name, path in (("other.pub", folder), ("key.pub", made / layout)):  # another key; no signature
        with pytest.raises(UserError, match=r"\d of \d files are not what they should be"):
            main(Options(verify=VerifyOptions(path=str(path), public_key=str(made / name))))


def test_a_voxel_that_was_changed_is_found(copy):
    for file in ("run/imagesTr/a.nii.gz", "msd/imagesTr/a.nii.gz"):
        volume = nib.load(copy / file)
        array = np.asanyarray(volume.dataobj).copy()
        array[2, 1, 1] += 1
        write_volume(copy / file, array, volume.affine, "medaug synthetic")
        assert states(copy / file) == {("synthetic", "changed", "not signed")}
    path = copy / "dicom/a/MR/0002.dcm"
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.PixelData[::-1]
    dataset.save_as(path)
    report = copy / "report.json"
    with pytest.raises(UserError, match="dicom: 1 of 4 files are not what they should be"):
        main(Options(verify=VerifyOptions(path=str(copy / "dicom"), report=str(report))))
    assert [Path(one["path"]).name for one in json.loads(report.read_text()) if one["state"] == "changed"] == [
        "0002.dcm"
    ]


def test_a_mark_that_was_changed_is_found(copy):
    for change in ("recipe", "signature"):
        path = copy / "signed_msd/imagesTr/a.json"
        before = path.read_text()
        content = json.loads(before)
        if change == "recipe":
            content["medaug"]["recipe"]["checkpoint"] = "cd" * 32
        else:  # a forger adapts the digests, but cannot sign them
            content["medaug"]["phantom"] = True
        path.write_text(json.dumps(content))
        (found,) = verify(copy / "signed_msd/imagesTr/a.nii.gz")
        assert found.is_wrong
        assert (found.state, found.signature) == (
            ("unreadable", "not signed") if change == "recipe" else ("unchanged", "wrongly signed")
        )
        path.write_text(before)


def test_dicom_stays_unchanged_under_another_transfer_syntax_and_name(copy):
    path = copy / "dicom/a/MR/0002.dcm"
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(copy / "moved", implicit_vr=True)
    assert states(copy / "moved") == {("synthetic", "unchanged", "not signed")}


def test_lost_unmarked_and_damaged_files_are_reported(copy):
    (copy / "msd/labelsTr/a.nii.gz").unlink()
    (copy / "msd/imagesTr/a.json").unlink()
    assert states(copy / "msd") == {("synthetic", "unknown", "not signed"), ("synthetic", "missing", "not signed")}
    (copy / "run/labelsTr/a.nii.gz").unlink()
    assert {one.state for one in verify(copy / "run")} == {"unchanged", "missing"}
    write_volume(copy / "plain/x.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    (copy / "plain/y.nii.gz").write_bytes(b"no")
    (copy / "plain/z.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (copy / "plain/notes.json").write_text("[]")
    found = {one.path.name: one for one in verify(copy / "plain")}
    assert [(name, one.origin, one.state) for name, one in found.items()] == [
        ("x.nii.gz", "not marked", "unknown"),
        ("y.nii.gz", "not marked", "unreadable"),
        ("z.dcm", "not marked", "unreadable"),
    ]


def test_rejected_pairs_do_not_count_as_missing(copy):
    """Screening moves files, and records rejected attempts of which no file was kept."""
    record = {**RECIPE.to_mapping(), "name": "b", "subjects": ["s1"], "screening": {}}
    provenance.append(copy / "run/rejected/provenance.jsonl", record)
    for folder in ("imagesTr", "labelsTr"):
        (copy / "run/rejected" / folder).mkdir()
        (copy / "run" / folder / "a.nii.gz").rename(copy / "run/rejected" / folder / "a.nii.gz")
    assert len(verify(copy / "run")) == 2
    assert states(copy / "run") == {("synthetic", "unchanged", "not signed")}


def test_the_command_takes_a_bare_word_and_returns_2_for_a_changed_file(copy, capsys):
    assert run("verify", main, [str(copy / "msd/imagesTr/a.nii.gz")]) == 0
    (copy / "msd/imagesTr/a.nii.gz").write_bytes(b"")
    assert run("verify", main, [str(copy / "msd")]) == 2
    said = capsys.readouterr().err
    assert "a.nii.gz: synthetic, unchanged, recipe" in said and "synthetic, changed" in said
    assert said.splitlines()[-1].startswith("medaug verify: error: ") and "restore or generate" in said


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "path=FILE_OR_DIR is missing"),
        ({"path": "nowhere"}, "nowhere: no such file or folder"),
        ({"path": "msd", "public_key": "key.pem"}, "key.pem: not a public key in PEM; make it with `openssl pkey"),
        ({"path": "msd", "public_key": "x25519.pub"}, "x25519.pub: not a public key for Ed25519"),
    ],
)
def test_what_cannot_be_verified_gives_one_line(made, monkeypatch, wanted, reason):
    monkeypatch.chdir(made)
    with pytest.raises(UserError, match=reason) as error:
        main(Options(verify=VerifyOptions(**wanted)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("key.pub", "not a private key in PEM"), ("x25519.pem", "for Ed25519"), ("locked.pem", "protected by a password")],
)
def test_a_key_that_cannot_sign_is_refused(made, name, reason):
    with pytest.raises(UserError, match=reason):
        Signer.load(made / name)
