"""Layouts: what is detected, how files are paired, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist, load_decathlon_properties

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.errors import UserError
from medaug.layouts import LAYOUTS, Layout, detect_layout, read_layout
from medaug.layouts.common import LayoutFormat
from medaug.layouts.rules import Rules

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
    layout = read_layout(tmp_path)
    assert (layout.name, layout.proposed) == ("brats2020", True)
    assert [(f.severity, f.code, f.what) for f in layout.problems] == [
        ("note", "unused-file", f"{tmp_path}/.cache: not used, a hidden folder"),
        ("note", "unused-file", f"{tmp_path}/atlas.nii.gz: not used, its name does not fit this layout"),
    ]
    manifest = layout.manifest
    assert manifest.modalities == ("T1", "T1ce", "T2", "FLAIR")
    assert manifest.schema.to_mapping() == {
        "labels": {"0": "background", "1": "necrotic core", "2": "oedema", "4": "enhancing tumour"},
        "regions": {"whole tumour": [1, 2, 4], "tumour core": [1, 4], "enhancing tumour": [4]},
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


def test_brats_2023_names_give_the_subject(tmp_path: Path) -> None:
    names = ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-MEN-RT-0003-1"]
    _brats(tmp_path, names, NEW, "-seg", ".nii")
    manifest = read_layout(tmp_path, "brats2023").manifest
    assert [(case.name, case.subject) for case in manifest.cases] == [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS-MEN-RT-0003-1", "BraTS-MEN-RT-0003"),
    ]
    assert manifest.schema.to_mapping() == {
        "labels": {"0": "background", "1": "necrotic core", "2": "oedema", "3": "enhancing tumour"},
        "regions": {"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": [3]},
    }
    assert [image.rsplit("-", 1)[1] for image in manifest.cases[0].images] == [
        "t1n.nii",
        "t1c.nii",
        "t2w.nii",
        "t2f.nii",
    ]


def test_the_cavity_of_brats_2024_is_not_tumour(tmp_path: Path) -> None:
    _brats(tmp_path, ["BraTS-GLI-02064-100"], NEW, "-seg")
    layout = read_layout(tmp_path, "brats2024")
    assert layout.proposed
    schema = layout.manifest.schema
    assert dict(schema.labels)[4] == "resection cavity" and dict(schema.labels)[3] == "enhancing tumour"
    assert dict(schema.regions) == {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}


def test_names_do_not_distinguish_2023_from_2024(tmp_path: Path) -> None:
    _brats(tmp_path, ["BraTS-GLI-02064-100"], NEW, "-seg")
    with pytest.raises(
        UserError, match=r"alike.*4 resection cavity; name layout=brats2023 or layout=brats2024"
    ) as error:
        read_layout(tmp_path)
    assert "\n" not in str(error.value)


def test_labels_of_the_user_override_those_of_the_layout(tmp_path: Path) -> None:
    _brats(tmp_path, ["BraTS-PED-00001-000"], NEW, "-seg")
    with pytest.raises(UserError, match="BraTS-PEDs 2024 has label values of its own"):
        read_layout(tmp_path, "brats2024")
    labels = {"0": "background", "1": "enhancing tumour", "2": "non-enhancing", "3": "cyst", "4": "oedema"}
    layout = read_layout(tmp_path, "brats2024", Rules(schema={"labels": labels}))
    assert layout.manifest.schema.to_mapping() == {"labels": labels}
    assert not layout.proposed
    only_a_region = read_layout(tmp_path, "brats2023", Rules(schema={"regions": {"core": [1, 3]}}))
    assert only_a_region.proposed and only_a_region.manifest.schema.regions == (("core", (1, 3)),)
    assert only_a_region.manifest.schema.values == (0, 1, 2, 3)
    with pytest.raises(UserError, match="mine.yaml: .*region core"):
        read_layout(tmp_path, "brats2023", Rules(schema={"regions": {"core": [9]}}, source="mine.yaml"))


def test_a_flat_folder_and_cases_without_label(tmp_path: Path) -> None:
    for name in ("p1", "p10", "p2"):
        for suffix in OLD:
            _touch(tmp_path / f"{name}{suffix}.nii.gz")
    _touch(tmp_path / "p10_seg.nii.gz")
    assert {case.name: case.label for case in read_layout(tmp_path).manifest.cases} == {
        "p1": None,
        "p10": "p10_seg.nii.gz",
        "p2": None,
    }
    for case in read_layout(tmp_path).manifest.cases:
        assert all(image.startswith(f"{case.name}_") for image in case.images)


def _codes(layout: Layout) -> list[tuple[str, str, str]]:
    return sorted((finding.case, finding.severity, finding.code) for finding in layout.problems)


@pytest.mark.parametrize(("suffixes", "name"), [(OLD, "brats2020"), (NEW, "brats2023")])
def test_every_missing_modality_is_reported_in_one_pass(tmp_path: Path, suffixes: tuple[str, ...], name: str) -> None:
    _brats(tmp_path, ["a", "b", "c"], suffixes, None)
    gone = [
        tmp_path / "b" / f"b{suffixes[1]}.nii.gz",
        tmp_path / "c" / f"c{suffixes[0]}.nii.gz",
        tmp_path / "c" / f"c{suffixes[3]}.nii.gz",
    ]
    for file in gone:
        file.unlink()
    layout = read_layout(tmp_path, name)
    assert [case.name for case in layout.manifest.cases] == ["a"]
    assert _codes(layout) == [(case, "error", "missing-modality") for case in ("b", "c", "c")]
    for file, modality, finding in zip(gone, ("T1ce", "T1", "FLAIR"), layout.problems, strict=True):
        assert finding.what == f"{file}: {modality} of case {finding.case} is missing"
    with pytest.raises(UserError, match=r"T1ce of case b is missing; .*2 more errors") as error:
        layout.valid_manifest()
    assert str(error.value).startswith(str(gone[0]))


def test_duplicate_cases_and_segmentations_without_images(tmp_path: Path) -> None:
    _brats(tmp_path, ["x/a", "y/a"], OLD, None)
    _touch(tmp_path / "labels/b_seg.nii.gz")
    _touch(tmp_path / "x/a/a_t2.nii")
    layout = read_layout(tmp_path)
    assert _codes(layout) == [
        ("a", "error", "duplicate-file"),
        ("a", "error", "duplicate-file"),
        ("b", "error", "unpaired-label"),
    ]
    text = " ".join(finding.what for finding in layout.problems)
    assert "x/a/a_t2.nii" in text and "x/a/a_t2.nii.gz" in text
    assert "case a occurs twice" in text and "labels/b_seg.nii.gz" in text
    assert [case.name for case in layout.manifest.cases] == ["a"]


def test_a_folder_without_a_complete_case_is_still_read(tmp_path: Path) -> None:
    _touch(tmp_path / "a_t1.nii.gz")
    layout = read_layout(tmp_path)
    assert layout.manifest.cases == () and len(layout.problems) == 3


def test_other_formats_links_and_names_that_no_file_can_hold(tmp_path: Path) -> None:
    _brats(tmp_path / "elsewhere", ["a"], OLD, "_seg", ".mha")
    _brats(tmp_path / "root", ["b"], OLD, "_seg", ".nrrd")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    layout = read_layout(tmp_path / "root")
    assert [(case.name, case.label) for case in layout.manifest.cases] == [
        ("a", "link/a/a_seg.mha"),
        ("b", "b/b_seg.nrrd"),
    ]
    (tmp_path / "root" / b"\xff_t1.nii".decode("utf-8", "surrogateescape")).touch()
    with pytest.raises(UserError, match="not UTF-8 text on one line; rename"):
        read_layout(tmp_path / "root")


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
    layout = read_layout(tmp_path)
    assert not layout.proposed
    manifest = layout.manifest
    assert manifest.modalities == ("FLAIR", "T1w", "t1gd", "T2w")
    assert manifest.schema.foreground == ("edema", "non-enhancing tumor", "enhancing tumour")
    assert manifest.cases == tuple(
        Case(f"BRATS_{n}", (f"imagesTr/BRATS_{n}.nii.gz",), f"labelsTr/BRATS_{n}.nii.gz", f"BRATS_{n}", "train")
        for n in ("001", "002")
    )
    assert manifest.root == str(tmp_path)


def test_msd_case_names_have_no_suffix_and_rules_correct_labels(tmp_path: Path) -> None:
    _msd(tmp_path, [{"image": "./a.mha"}, {"image": "b.nii.gz", "name": "patient b"}], labels={"1": "edema"})
    rules = Rules(schema={"labels": {0: "background", 1: "oedema"}, "ignore": 9})
    manifest = read_layout(tmp_path, "msd", rules).manifest
    assert [case.name for case in manifest.cases] == ["a", "patient b"]
    assert manifest.schema.to_mapping() == {"labels": {"0": "background", "1": "oedema"}, "ignore": 9}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training": []}, "empty"),
        ({"labels": {"1": "a"}}, "background"),
        ({"modality": {"1": "T1"}}, "modality"),
    ],
)
def test_bad_msd_folders_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    _msd(tmp_path, [{"image": "a.nii.gz"}], **changes)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{reason}"):
        read_layout(tmp_path)


def test_unknown_and_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_layout(tmp_path / "absent")
    with pytest.raises(
        UserError,
        match="follows none of the layouts msd, brats2020, brats2023, brats2024, nnunet, pairs, dicom; .*"
        r"images='images/\*\.nii\.gz' labels='labels/\*\.nii\.gz' classes=",
    ):
        read_layout(tmp_path)
    with pytest.raises(UserError, match="no such layout; choose auto, msd"):
        read_layout(tmp_path, "brats2077")
    with pytest.raises(UserError, match="no files in BraTS 2023 naming"):
        read_layout(tmp_path, "brats2023")
    for layout in ("msd", "nnunet"):
        with pytest.raises(UserError, match=r"dataset\.json: no such file"):
            read_layout(tmp_path, layout)
    _brats(tmp_path, ["a"], OLD, None)
    _brats(tmp_path, ["b"], NEW, None)
    with pytest.raises(UserError, match="brats2020 and brats2023"):
        read_layout(tmp_path)
    assert [case.name for case in read_layout(tmp_path, "brats2023").manifest.cases] == ["b"]
    for key, rules in (
        ("case", Rules(case="(.)")),
        ("structures", Rules(structures={"a": "a"})),
        ("modalities", Rules(modalities={"T1": "*"})),
    ):
        with pytest.raises(UserError, match=f"layout brats2020 does not use {key}"):
            read_layout(tmp_path, "brats2020", rules)


@pytest.mark.parametrize("name", ["scan.DCM", "1.2.840.1"])
def test_dicom_is_detected_and_must_be_ingested(tmp_path: Path, name: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/readme.txt").write_text("short")
    (tmp_path / "a/b" / name).write_bytes(bytes(128) + b"DICM")
    assert detect_layout(tmp_path) == "dicom"
    with pytest.raises(UserError, match=r"medaug\.ingest root=DIR out="):
        read_layout(tmp_path)


def test_rules_decide_what_is_detected(tmp_path: Path) -> None:
    _brats(tmp_path, ["a"], OLD, None)
    assert detect_layout(tmp_path, Rules(modalities={"T1": "*"})) == "pairs"
    assert detect_layout(tmp_path, Rules(modalities={"T1": {"SeriesDescription": "t1"}})) == "dicom"


def test_manifests_of_every_layout_round_trip(tmp_path: Path) -> None:
    from medaug.cohort import Manifest

    _brats(tmp_path / "data", ["a", "b"], NEW, "-seg")
    manifest = read_layout(tmp_path / "data", "brats2024").valid_manifest()
    manifest.save(tmp_path / "cohort.json")
    assert Manifest.load(tmp_path / "cohort.json") == manifest
    listed = load_decathlon_datalist(str(tmp_path / "cohort.json"), True, "training", manifest.root)
    assert [(item["image"], item["label"]) for item in listed] == [
        ([str(path) for path in manifest.image_paths(case)], str(manifest.label_path(case))) for case in manifest.cases
    ]
    assert load_decathlon_properties(str(tmp_path / "cohort.json"), ["labels", "regions"]) == {
        key: manifest.schema.to_mapping()[key] for key in ("labels", "regions")
    }
    assert set(LAYOUTS) == {"msd", "brats2020", "brats2023", "brats2024", "nnunet", "pairs"}


def test_phantoms_are_marked(tmp_path: Path) -> None:
    from medaug.imaging.reading import read_images, read_label
    from medaug.phantoms.head import write_cohort

    write_cohort(tmp_path / "phantoms", 1, (32, 32, 32), 0)
    manifest = read_layout(tmp_path / "phantoms").valid_manifest()
    assert manifest.phantom
    assert manifest.modalities == ("T1", "T1ce", "T2", "FLAIR")
    (case,) = manifest.cases
    assert read_images(manifest.image_paths(case))[0].shape == (4, 32, 32, 32)
    label = manifest.label_path(case)
    assert label is not None
    assert set(manifest.schema.to_indices(read_label(label).array, "label").ravel()) == {0, 1, 2, 3}
    _brats(tmp_path / "patients", ["a"], OLD, None)
    assert not read_layout(tmp_path / "patients").manifest.phantom


def test_real_hippocampus(medaug_data: Path) -> None:
    root = Path(medaug_data) / "Task04_Hippocampus"
    layout = read_layout(root)
    manifest = layout.valid_manifest()
    assert layout.name == "msd" and not layout.proposed and layout.problems == ()
    assert len(manifest.cases) == 199
    assert manifest.schema.names == ("background", "Anterior", "Posterior")
    for case in manifest.cases:
        assert manifest.image_paths(case)[0].name == manifest.label_path(case).name == f"{case.name}.nii.gz"  # type: ignore[union-attr]


def test_an_entry_of_the_table_is_detected_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(root: Path, rules: Rules) -> Layout:
        case = Case("one", ("scan_one.nii.gz",), None, "one")
        schema = LabelSchema(((0, "background"), (1, "organ")))
        return Layout(
            "scans", Manifest("toy", "", ("CT",), schema, (case,), str(root)), False, (), frozenset(case.images)
        )

    entry = LayoutFormat(read, has_files=lambda files: any(file.startswith("scan_") for file in files))
    monkeypatch.setitem(LAYOUTS.own, "scans", lambda: entry)
    (tmp_path / "scan_one.nii.gz").touch()
    assert detect_layout(tmp_path) == "scans"
    assert [case.name for case in read_layout(tmp_path).manifest.cases] == ["one"]
