"""Layouts: what is detected, how files are paired, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from medaug.cohort import Case
from medaug.errors import UserError
from medaug.imaging.layouts import LAYOUTS, detect_layout, read_layout
from medaug.imaging.preflight import check

OLD = ("_t1", "_t1ce", "_t2", "_flair")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f")


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _brats(root: Path, cases: list[str], suffixes: tuple[str, ...], seg: str | None, ending: str = ".nii.gz") -> None:
    files = [
        root / case / f"{Path(case).name}{suffix}{ending}"
        for case in cases
        for suffix in (*suffixes, *([seg] if seg else []))
    ]
    random.Random(0).shuffle(files)
    for file in files:
        _touch(file)


def _msd(root: Path, entries: list[object], **changes: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    content = {
        "name": "Task",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "training": entries,
        "test": ["./imagesTs/x.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))


def test_brats_2020_naming(tmp_path: Path) -> None:
    _brats(tmp_path, ["HGG/BraTS20_Training_002", "LGG/BraTS20_Training_001"], OLD, "_seg")
    for clutter in (
        "survival_info.csv",
        "HGG/._BraTS20_Training_002_t1.nii.gz",
        ".cache/a_t1.nii.gz",
        "atlas.nii.gz",
    ):
        _touch(tmp_path / clutter)
    assert detect_layout(tmp_path) == "brats2020"
    manifest = read_layout(tmp_path)
    assert manifest.modalities == ("T1", "T1ce", "T2", "FLAIR")
    assert manifest.schema.to_mapping() == {
        "0": "background",
        "1": "necrotic core",
        "2": "oedema",
        "4": "enhancing tumour",
    }
    folder = "LGG/BraTS20_Training_001/BraTS20_Training_001"
    assert manifest.cases[0] == Case(
        "BraTS20_Training_001",
        tuple(f"{folder}{suffix}.nii.gz" for suffix in OLD),
        f"{folder}_seg.nii.gz",
        "BraTS20_Training_001",
        "train",
    )
    assert len(manifest.cases) == 2
    assert "2018-2021" in manifest.description


def test_brats_2023_naming_knows_the_person(tmp_path: Path) -> None:
    names = ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-MEN-RT-0003-1"]
    _brats(tmp_path, names, NEW, "-seg", ".nii")
    assert detect_layout(tmp_path) == "brats2023"
    manifest = read_layout(tmp_path)
    assert [(case.name, case.subject) for case in manifest.cases] == [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS-MEN-RT-0003-1", "BraTS-MEN-RT-0003"),
    ]
    assert manifest.schema.values == (0, 1, 2, 3)
    assert [image.rsplit("-", 1)[1] for image in manifest.cases[0].images] == [
        "t1n.nii",
        "t1c.nii",
        "t2w.nii",
        "t2f.nii",
    ]


def test_a_flat_folder_and_cases_without_label(tmp_path: Path) -> None:
    for name in ("p1", "p10", "p2"):
        for suffix in OLD:
            _touch(tmp_path / f"{name}{suffix}.nii.gz")
    _touch(tmp_path / "p10_seg.nii.gz")
    assert {case.name: case.label for case in read_layout(tmp_path).cases} == {
        "p1": None,
        "p10": "p10_seg.nii.gz",
        "p2": None,
    }
    for case in read_layout(tmp_path).cases:
        assert all(image.startswith(f"{case.name}_") for image in case.images)


@pytest.mark.parametrize(("suffixes", "modality"), [(OLD, "T1ce"), (NEW, "T1ce")])
def test_a_missing_modality_is_named(tmp_path: Path, suffixes: tuple[str, ...], modality: str) -> None:
    _brats(tmp_path, ["a", "b"], suffixes, None)
    gone = tmp_path / "b" / f"b{suffixes[1]}.nii.gz"
    gone.unlink()
    with pytest.raises(UserError, match=f"{modality} of case b is missing") as error:
        read_layout(tmp_path)
    assert str(error.value).startswith(str(gone))


def test_a_case_twice(tmp_path: Path) -> None:
    _brats(tmp_path, ["x/a", "y/a"], OLD, None)
    with pytest.raises(UserError, match="case a occurs 2 times"):
        read_layout(tmp_path)
    _brats(tmp_path / "z", ["a"], OLD, None)
    _touch(tmp_path / "z/a/a_t2.nii")
    with pytest.raises(UserError, match="the same image"):
        read_layout(tmp_path / "z")


def test_msd_4d(tmp_path: Path) -> None:
    entries = [
        {"image": f"./imagesTr/BRATS_{n}.nii.gz", "label": f"./labelsTr/BRATS_{n}.nii.gz"} for n in ("002", "001")
    ]
    _msd(
        tmp_path,
        [{"image": "./imagesTr/._BRATS_001.nii.gz", "label": "./labelsTr/._BRATS_001.nii.gz"}, *entries],
    )
    _brats(tmp_path, ["decoy"], OLD, None)
    assert detect_layout(tmp_path) == "msd"
    manifest = read_layout(tmp_path)
    assert manifest.modalities == ("FLAIR", "T1w", "t1gd", "T2w")
    assert manifest.schema.foreground == ("edema", "non-enhancing tumor", "enhancing tumour")
    assert manifest.cases == tuple(
        Case(f"BRATS_{n}", (f"imagesTr/BRATS_{n}.nii.gz",), f"labelsTr/BRATS_{n}.nii.gz", f"BRATS_{n}", "train")
        for n in ("001", "002")
    )
    assert manifest.root == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training": []}, "empty"),
        ({"labels": {"1": "a"}}, "background"),
        ({"modality": {"1": "T1"}}, "modality"),
    ],
)
def test_msd_that_is_wrong(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    _msd(tmp_path, [{"image": "a.nii.gz"}], **changes)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{reason}"):
        read_layout(tmp_path)


def test_what_is_not_detected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_layout(tmp_path / "absent")
    with pytest.raises(UserError, match="none of the layouts msd, brats2020, brats2023"):
        read_layout(tmp_path)
    with pytest.raises(UserError, match="no such layout; choose auto, msd"):
        read_layout(tmp_path, "brats2077")
    with pytest.raises(UserError, match="no files in BraTS 2023 naming"):
        read_layout(tmp_path, "brats2023")
    with pytest.raises(UserError, match=r"dataset\.json: no such file"):
        read_layout(tmp_path, "msd")
    _brats(tmp_path, ["a"], OLD, None)
    _brats(tmp_path, ["b"], NEW, None)
    with pytest.raises(UserError, match="brats2020 and brats2023"):
        read_layout(tmp_path)
    assert [case.name for case in read_layout(tmp_path, "brats2023").cases] == ["b"]


def test_nnunet_is_not_taken_for_msd(tmp_path: Path) -> None:
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": ".nii",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="none of the layouts"):
        detect_layout(tmp_path)


def test_every_layout_is_found_again_after_saving(tmp_path: Path) -> None:
    from medaug.cohort import Manifest

    _brats(tmp_path / "data", ["a", "b"], NEW, "-seg")
    manifest = read_layout(tmp_path / "data", "brats2023")
    manifest.save(tmp_path / "cohort.json")
    assert Manifest.load(tmp_path / "cohort.json") == manifest
    assert set(LAYOUTS) == {"msd", "brats2020", "brats2023"}


def test_phantoms_are_known_as_phantoms(tmp_path: Path) -> None:
    from medaug.imaging.phantom import write_cohort

    write_cohort(tmp_path / "phantoms", 1, (32, 32, 32), 0)
    manifest = read_layout(tmp_path / "phantoms")
    assert manifest.phantom
    assert manifest.modalities == ("T1", "T1ce", "T2", "FLAIR")
    assert check(manifest) == []
    _brats(tmp_path / "patients", ["a"], OLD, None)
    assert not read_layout(tmp_path / "patients").phantom


def test_real_hippocampus(medaug_data: Path) -> None:
    root = Path(medaug_data) / "Task04_Hippocampus"
    manifest = read_layout(root)
    assert detect_layout(root) == "msd"
    assert len(manifest.cases) == 199
    assert manifest.schema.names == ("background", "Anterior", "Posterior")
    for case in manifest.cases:
        assert manifest.image_paths(case)[0].name == manifest.label_path(case).name == f"{case.name}.nii.gz"  # type: ignore[union-attr]
