"""Every file that looks like an image is used, or listed in a note with the reason."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medaug.errors import UserError
from medaug.imaging.reading import read_header, read_volume
from medaug.ingestion.job import beside_dicom
from medaug.layouts import read_layout
from medaug.layouts.common import image_files
from medaug.layouts.rules import NO_RULES, Rules, with_pairs

LABELS = {"labels": {"0": "background", "1": "tumour"}}
RULES = with_pairs(NO_RULES, "images/*.nii.gz", "labels/*.nii.gz", None, ["background", "tumour"])


def save(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, np.uint8), np.eye(4)), path)
    return path


def pairs(root: Path, *cases: str, ending: str = ".nii.gz") -> None:
    for case in cases:
        for folder in ("images", "labels"):
            save(root / folder / "new.nii.gz").rename(root / folder / f"{case}{ending}")


def notes(root: Path, rules: Rules = RULES, layout: str = "pairs") -> dict[str, str]:
    """Relative path to the reason why the file is not used."""
    found = [f for f in read_layout(root, layout, rules).problems if f.code == "unused-file"]
    assert {f.severity for f in found} <= {"note"}
    return dict(f.what.removeprefix(f"{root}/").split(": not used, ") for f in found)


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii.gz", ".nii.GZ"])
def test_suffixes_in_capitals_are_read(tmp_path: Path, ending: str) -> None:
    pairs(tmp_path, "a")
    pairs(tmp_path, "b", ending=ending)
    layout = read_layout(tmp_path, "pairs", RULES)
    assert layout.problems == ()
    assert [(case.name, case.label) for case in layout.manifest.cases] == [
        ("a", "labels/a.nii.gz"),
        ("b", f"labels/b{ending}"),
    ]
    assert read_volume(tmp_path / f"images/b{ending}").array.sum() == 24
    assert read_header(tmp_path / f"images/b{ending}").shape == (2, 3, 4)


def test_suffixes_in_capitals_in_every_layout_and_format(tmp_path: Path) -> None:
    import SimpleITK as sitk

    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 3, 2), np.int16)), str(tmp_path / f"a{suffix}"))
        upper = (tmp_path / f"a{suffix}").rename(tmp_path / f"a{suffix.upper()}")
        assert read_volume(upper).array.sum() == 24
    brats = tmp_path / "brats"
    for part in ("t1", "t1ce", "t2", "flair", "seg"):
        save(brats / "x.nii.gz").rename(brats / f"x_{part}.NII.GZ")
    assert [case.name for case in read_layout(brats, "brats2020").manifest.cases] == ["x"]
    nnunet = tmp_path / "nnunet"
    save(nnunet / "imagesTr/x.nii.gz").rename(nnunet / "imagesTr/x_0000.NII.GZ")
    save(nnunet / "labelsTr/x.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    (nnunet / "dataset.json").write_text(json.dumps(content))
    (case,) = read_layout(nnunet).valid_manifest().cases
    assert (case.images, case.label) == (("imagesTr/x_0000.NII.GZ",), "labelsTr/x.nii.gz")
    save(nnunet / "imagesTr/x_0000.nii.gz")
    assert [f.code for f in read_layout(nnunet).problems] == ["duplicate-file"]


def test_two_names_that_differ_in_capitals_are_two_files_of_one_case(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    pairs(tmp_path, "a", ending=".NII.GZ")
    assert {f.code for f in read_layout(tmp_path, "pairs", RULES).problems} == {"duplicate-file"}


def test_a_second_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    # Images and labels side by side in one folder, which both names lead to.
    for case in ("a", "b"):
        save(tmp_path / "store" / f"{case}_img.nii.gz")
        save(tmp_path / "store" / f"{case}_seg.nii.gz")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("images", "labels"):
        (root / name).symlink_to(tmp_path / "store")
    rules = with_pairs(NO_RULES, "images/*_img.*", "labels/*_seg.*", "/([^/]+)_", ["background", "tumour"])
    layout = read_layout(root, "pairs", rules)
    assert [(case.images, case.label) for case in layout.manifest.cases] == [
        ((f"images/{name}_img.nii.gz",), f"labels/{name}_seg.nii.gz") for name in ("a", "b")
    ]
    assert set(notes(root, rules)) == {f"images/{n}_seg.nii.gz" for n in "ab"} | {
        f"labels/{n}_img.nii.gz" for n in "ab"
    }


def test_circular_links_end(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    (tmp_path / "images/up").symlink_to(tmp_path)
    assert notes(tmp_path) == {"images/up": "a link to a folder that was read before"}
    knot = tmp_path / "knot"
    for one in range(12):
        save(knot / f"{one}/{one}.nii.gz")
    for one in range(12):
        for other in set(range(12)) - {one}:
            (knot / f"{one}/to{other}").symlink_to(knot / f"{other}")
    found = image_files(knot)
    assert {Path(file).name for file in found} == {f"{one}.nii.gz" for one in range(12)} and len(found) <= 8 * 12


def test_a_brats_case_by_two_links_is_one_case(tmp_path: Path) -> None:
    for part in ("t1", "t1ce", "t2", "flair"):
        save(tmp_path / "store" / f"x_{part}.nii.gz")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path / "store")
    layout = read_layout(tmp_path, "brats2020")
    assert len(layout.valid_manifest().cases) == 1
    assert [(f.severity, f.code) for f in layout.problems] == [("note", "unused-file")] * 2


def test_unused_images_are_listed_with_the_reason(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    other = "of a format that this layout does not read"
    expected = {
        "notes/b.nii.gz": "no glob matches it",
        "images/.c.nii.gz": "a hidden file",
        ".old": "a hidden folder",
        "images/d.mgz": other,
        "images/e.img": other,
        "images/f.DCM": other,
        "images/g.nii.gz.part": other,
        "images/h.nii (1).gz": other,
        "images/i.nii.bz2": other,
        "images/j.png": other,
    }
    unlike = ("readme.txt", "images/a.json", "images/a.nii.gz.md5", "images/._a.nii.gz", ".git/HEAD.txt", "a.nii.json")
    for name in (*expected, *unlike):
        path = tmp_path / (f"{name}/x.nii.gz" if name == ".old" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert notes(tmp_path) == expected


def test_images_missing_in_dataset_json_are_listed(tmp_path: Path) -> None:
    for name in ("imagesTr/a", "labelsTr/a", "imagesTr/b", "imagesTs/c"):
        save(tmp_path / f"{name}.nii.gz")
    entries = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    content = {"name": "T", "modality": {"0": "CT"}, "training": entries, "test": ["./imagesTs/c.nii.gz"], **LABELS}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    why = "dataset.json does not list it for training"
    assert notes(tmp_path, NO_RULES, "msd") == {"imagesTr/b.nii.gz": why, "imagesTs/c.nii.gz": why}


def test_nnunet_version_1_is_read_by_channel(tmp_path: Path) -> None:
    entries = []
    for name in ("a", "b"):
        for channel in range(2):
            save(tmp_path / f"imagesTr/{name}_{channel:04d}.nii.gz")
        save(tmp_path / f"labelsTr/{name}.nii.gz")
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    content = {"name": "LA", "modality": {"0": "T1", "1": "T2"}, "training": entries, "test": [], **LABELS}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    layout = read_layout(tmp_path)
    manifest = layout.valid_manifest()
    assert layout.name == "msd" and [(f.severity, f.code) for f in layout.problems] == [("note", "nnunet-v1")]
    assert [case.name for case in manifest.cases] == ["a", "b"]
    assert manifest.cases[0].images == ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    assert read_layout(tmp_path).manifest.cases[1].images[1] == "imagesTr/b_0001.nii.gz"  # preflight: missing-file
    (tmp_path / "imagesTr/a.nii.gz").touch()
    assert read_layout(tmp_path).manifest.cases[0].images == ("imagesTr/a.nii.gz",)  # listed files have priority


def test_unicode_forms_of_a_name_are_equal(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "M\u00fcller") for form in ("NFC", "NFD"))
    assert composed != decomposed
    save(tmp_path / f"images/{decomposed}.nii.gz")
    save(tmp_path / f"labels/{composed}.nii.gz")
    for pattern in (None, "/([^/]+).nii"):
        rules = with_pairs(NO_RULES, "images/M\u00fc*.nii.gz", "labels/*", pattern, ["background", "tumour"])
        (case,) = read_layout(tmp_path, "pairs", rules).valid_manifest().cases
        assert (case.name, case.images) == (composed, (f"images/{decomposed}.nii.gz",))
        assert case.label == f"labels/{composed}.nii.gz"
    with pytest.raises(UserError, match=r"does not exist, but .* only in how accents are written .*\(M.*er\.nii\.gz\)"):
        read_header(tmp_path / f"images/{composed}.nii.gz")
    save(tmp_path / "images/a.nii.gz").rename(tmp_path / "images/a.NII.gz")
    with pytest.raises(
        UserError, match=r"does not exist, but .* differs only in capital letters \(a\.NII\.gz\); rename"
    ):
        read_header(tmp_path / "images/a.nii.gz")


def test_images_are_listed_if_no_layout_fits(tmp_path: Path) -> None:
    save(tmp_path / "x/brain.mgz".replace("mgz", "nii.gz")).rename(tmp_path / "x/brain.mgz")
    with pytest.raises(UserError, match=r"\(1 files look like images; .*brain\.mgz: not used, of a format"):
        read_layout(tmp_path)


def test_other_formats_in_a_tree_of_dicom_are_counted_but_not_named(tmp_path: Path) -> None:
    for name in ("doe/a.nii.gz", "doe/b.NII", "doe/labels/c.nrrd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (note,) = beside_dicom(tmp_path, "*/labels/*.nrrd", "cohort")
    assert (
        note.severity == "note"
        and note.what.startswith("2 files (.nii, .nii.gz) are not used")
        and "doe" not in str(note)
    )
    (note,) = beside_dicom(tmp_path, None, "cohort")
    assert note.what.startswith("3 files (.nii, .nii.gz, .nrrd)")
    assert list(beside_dicom(tmp_path, "**/*.*", "cohort")) == [] == list(beside_dicom(tmp_path / "none", None, "c"))
