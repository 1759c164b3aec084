"""Exported cohorts, read by the tools that they are meant for."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from monai.data import load_decathlon_datalist

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.errors import UserError
from medaug.exporting.formats import WRITERS
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_images
from medaug.layouts import read_layout

NIFTI = ("msd", "nnunet")
SHAPE = (7, 8, 5)
BRATS = LabelSchema(((0, "background"), (1, "necrotic core"), (2, "oedema"), (4, "enhancing tumour")))
AFFINE = np.array([[0, -1.5, 0, 10], [1.2, 0, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")


def cohort(root, modalities=MODALITIES, dtype="int16", four_d=False, num=2) -> Manifest:
    rng = np.random.default_rng(0)
    cases = []
    for i in range(num):
        images = [rng.integers(0, 200, SHAPE).astype(dtype) for _ in modalities]
        if four_d:
            files = [f"in/case{i}.nii.gz"]
            (root / "in").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.stack(images, -1), AFFINE), root / files[0])
        else:
            files = [f"in/case{i}_{name}.nii.gz" for name in modalities]
            for file, image in zip(files, images, strict=True):
                write_volume(root / file, image, AFFINE)
        label = rng.choice(BRATS.values, SHAPE).astype(np.uint8)
        write_volume(root / f"in/case{i}_seg.nii.gz", label, AFFINE)
        cases.append(Case(f"case{i}", tuple(files), f"in/case{i}_seg.nii.gz", f"subject{i // 2}"))
    return Manifest("toy", "a toy", tuple(modalities), BRATS, tuple(cases), str(root))


def data(path):
    return np.asanyarray(nib.load(path).dataobj)


def assert_placed(path) -> None:
    np.testing.assert_allclose(nib.load(path).affine, AFFINE, atol=1e-6)
    image = SimpleITK.ReadImage(str(path))  # ITK counts in LPS
    np.testing.assert_allclose(image.GetOrigin()[:3], AFFINE[:3, 3] * [-1, -1, 1], atol=1e-5)
    np.testing.assert_allclose(image.GetSpacing()[:3], [1.2, 1.5, 2.0], atol=1e-5)
    assert nib.load(path).header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("four_d", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_msd_with_several_modalities_is_one_4d_file_per_case(tmp_path, dtype, four_d):
    manifest = cohort(tmp_path, dtype=dtype, four_d=four_d)
    WRITERS["msd"](Export(manifest, tmp_path / "out"))
    listed = load_decathlon_datalist(str(tmp_path / "out/dataset.json"), True, "training", str(tmp_path / "out"))
    assert len(listed) == 2
    for item, case in zip(listed, manifest.cases, strict=True):
        image = data(item["image"])
        assert image.shape == (*SHAPE, 4) and image.dtype == dtype
        np.testing.assert_array_equal(np.moveaxis(image, -1, 0), read_images(manifest.image_paths(case))[0])
        np.testing.assert_array_equal(data(item["label"]), data(manifest.label_path(case)))
        assert_placed(item["image"])
        assert_placed(item["label"])


def test_msd_with_one_modality_is_3d_and_medaug_reads_back_what_it_wrote(tmp_path):
    manifest = cohort(tmp_path, modalities=("T1",))
    WRITERS["msd"](Export(manifest, tmp_path / "out"))
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["tensorImageSize"] == "3D" and content["numTraining"] == len(content["training"]) == 2
    again = read_layout(tmp_path / "out").valid_manifest()
    assert (again.schema, again.modalities, again.name) == (BRATS, ("T1",), "toy")
    assert content["training"][0]["split"] == "train"
    assert [(c.name, c.subject) for c in again.cases] == [(c.name, c.subject) for c in manifest.cases]
    for one, other in zip(again.cases, manifest.cases, strict=True):
        assert data(again.image_paths(one)[0]).shape == SHAPE
        np.testing.assert_array_equal(data(again.image_paths(one)[0]), data(manifest.image_paths(other)[0]))


@pytest.mark.parametrize("layout", NIFTI)
@pytest.mark.parametrize("phantom", [False, True])
def test_no_header_contains_the_name_of_the_cohort(tmp_path, layout, phantom):
    manifest = replace(cohort(tmp_path), name="Quackenbush Zebulon", phantom=phantom)
    WRITERS[layout](Export(manifest, tmp_path / "out"))
    files = sorted((tmp_path / "out").rglob("*.nii.gz"))
    notes = {bytes(nib.load(file).header["descrip"].item()) for file in files}
    assert notes == {b"medaug export, phantom" if phantom else b"medaug export"} and len(files) >= 4


def test_nnunet_has_a_file_per_modality_and_consecutive_labels(tmp_path):
    manifest = cohort(tmp_path)
    WRITERS["nnunet"](Export(manifest, tmp_path / "Dataset501_Toy"))
    out = tmp_path / "Dataset501_Toy"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    expected = {f"imagesTr/case{i}_{m:04d}.nii.gz" for i in range(2) for m in range(4)}
    assert names == expected | {f"labelsTr/case{i}.nii.gz" for i in range(2)} | {"dataset.json"}
    content = json.loads((out / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert content["labels"] == {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
    assert content["numTraining"] == 2 and content["file_ending"] == ".nii.gz"
    for case in manifest.cases:
        for m, path in enumerate(manifest.image_paths(case)):
            np.testing.assert_array_equal(data(out / f"imagesTr/{case.name}_{m:04d}.nii.gz"), data(path))
            assert_placed(out / f"imagesTr/{case.name}_{m:04d}.nii.gz")
        values, indices = data(manifest.label_path(case)), data(out / f"labelsTr/{case.name}.nii.gz")
        assert set(np.unique(values)) == {0, 1, 2, 4}
        np.testing.assert_array_equal(indices, np.where(values == 4, 3, values))


@pytest.mark.parametrize("layout", NIFTI)
def test_attributes_round_trip(tmp_path, layout):
    manifest = cohort(tmp_path, modalities=("T1",), num=3)
    expected = [{"site": "A", "grade": 2.0}, {}, {"site": "B"}]
    cases = tuple(replace(case, attributes=known) for case, known in zip(manifest.cases, expected, strict=True))
    WRITERS[layout](Export(replace(manifest, cases=cases), tmp_path / "out"))
    assert [case.attributes for case in read_layout(tmp_path / "out").valid_manifest().cases] == expected


@pytest.mark.parametrize("layout", NIFTI)
def test_scaled_values_are_exported_correctly(tmp_path, layout):
    manifest = cohort(tmp_path, modalities=("T1",), num=1)
    raw = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_slope_inter(0.001, 0.25)
    nib.save(image, manifest.image_paths(manifest.cases[0])[0])
    WRITERS[layout](Export(manifest, tmp_path / "out"))
    (written,) = (tmp_path / "out/imagesTr").iterdir()
    np.testing.assert_allclose(data(written), raw * 0.001 + 0.25, atol=1e-6)


def test_modalities_of_different_types_get_a_common_type(tmp_path):
    manifest = cohort(tmp_path, modalities=("T1", "T2"), num=1)
    first, second = manifest.image_paths(manifest.cases[0])
    fine = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    write_volume(second, fine, AFFINE)
    WRITERS["msd"](Export(manifest, tmp_path / "out"))
    stack = data(tmp_path / "out/imagesTr/case0.nii.gz")
    np.testing.assert_array_equal(stack[..., 0], data(first))
    np.testing.assert_array_equal(stack[..., 1], fine)


@pytest.mark.parametrize("layout", NIFTI)
def test_an_existing_folder_is_refused_and_not_changed(tmp_path, layout):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(UserError, match="out: already exists; choose a folder that does not"):
        WRITERS[layout](Export(cohort(tmp_path), tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("layout", NIFTI)
def test_a_fault_in_the_last_case_leaves_nothing(tmp_path, layout):
    manifest = cohort(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    manifest.label_path(manifest.cases[1]).write_bytes(b"")
    with pytest.raises(UserError, match="case1_seg.nii.gz: is empty"):
        WRITERS[layout](Export(manifest, tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("layout", NIFTI)
def test_an_interruption_and_a_full_disk_leave_nothing(tmp_path, layout, monkeypatch):
    manifest = cohort(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for error, seen in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), UserError)):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(json, "dumps", fail)  # at the very end, all volumes are written
        with pytest.raises(seen):
            WRITERS[layout](Export(manifest, tmp_path / "out"))
        monkeypatch.undo()
        assert sorted(tmp_path.rglob("*")) == before


def test_an_impossible_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        WRITERS["msd"](Export(cohort(tmp_path), tmp_path / "file" / "out"))


def test_only_labelled_cases_are_written_and_there_must_be_one(tmp_path):
    manifest = cohort(tmp_path)
    unlabelled = [Case(c.name, c.images, None, c.subject) for c in manifest.cases]
    mixed = Manifest(**{**vars(manifest), "cases": (manifest.cases[0], unlabelled[1])})
    WRITERS["msd"](Export(mixed, tmp_path / "out"))
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 1
    with pytest.raises(UserError, match="no labelled case for training"):
        WRITERS["msd"](Export(Manifest(**{**vars(manifest), "cases": tuple(unlabelled)}), tmp_path / "none"))


def tree(folder) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def split_cohort(root) -> Manifest:
    """Seven cases: two of each split, one of them without a label, and one more for training."""
    manifest = cohort(root, modalities=("T1",), num=7)
    splits = ("train", "train", "val", "test", "train", "val", "test")
    cases = [replace(c, split=s, subject=c.name) for c, s in zip(manifest.cases, splits, strict=True)]
    cases[4:] = [replace(case, label=None) for case in cases[4:]]
    return replace(manifest, cases=tuple(cases))


def test_msd_lists_test_cases_separately_and_without_labels(tmp_path, caplog):
    WRITERS["msd"](Export(split_cohort(tmp_path), tmp_path / "out"))
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["test"] == ["./imagesTs/case3.nii.gz", "./imagesTs/case6.nii.gz"] and content["numTest"] == 2
    assert [(e["image"], e["split"]) for e in content["training"]] == [
        ("./imagesTr/case0.nii.gz", "train"),
        ("./imagesTr/case1.nii.gz", "train"),
        ("./imagesTr/case2.nii.gz", "val"),
    ]
    train = {f"{part}Tr/case{i}.nii.gz" for part in ("images", "labels") for i in range(3)}
    assert tree(tmp_path / "out") == train | {f"imagesTs/case{i}.nii.gz" for i in (3, 6)} | {"dataset.json"}
    assert "2 training or validation cases have no label and are left out" in caplog.text
    listed = load_decathlon_datalist(str(tmp_path / "out/dataset.json"), True, "test", str(tmp_path / "out"))
    assert [item["image"] for item in listed] == [str(tmp_path / f"out/imagesTs/case{i}.nii.gz") for i in (3, 6)]


def test_nnunet_never_trains_on_a_test_case_and_keeps_the_split(tmp_path):
    WRITERS["nnunet"](Export(split_cohort(tmp_path), tmp_path / "out"))
    expected = {f"imagesTr/case{i}_0000.nii.gz" for i in range(3)} | {f"labelsTr/case{i}.nii.gz" for i in range(3)}
    expected |= {"imagesTs/case3_0000.nii.gz", "imagesTs/case6_0000.nii.gz", "labelsTs/case3.nii.gz"}
    assert tree(tmp_path / "out") == expected | {"dataset.json", "splits_final.json"}
    splits = json.loads((tmp_path / "out/splits_final.json").read_text())
    assert splits == [{"train": ["case0", "case1"], "val": ["case2"]}]
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["numTraining"] == 3 and content["medaug"]["subjects"]["case6"] == "case6"


@pytest.mark.parametrize("layout", NIFTI)
def test_a_cohort_of_test_cases_only_is_refused(tmp_path, layout):
    manifest = cohort(tmp_path)
    tested = replace(manifest, cases=tuple(replace(case, split="test") for case in manifest.cases))
    with pytest.raises(UserError, match="no labelled case for training"):
        WRITERS[layout](Export(tested, tmp_path / "out"))


TUMOUR = LabelSchema(
    labels=((0, "background"), (1, "necrosis"), (2, "oedema"), (3, "enhancing")),
    regions=(("core", (1, 3)), ("whole", (1, 2, 3)), ("enhancing", (3,))),
    ignore=9,
    remap=((4, 3), (7, 9)),
)
RAW = np.array([0, 1, 2, 3, 4, 7, 9], np.uint8)


def remapped(root) -> Manifest:
    manifest = replace(cohort(root, modalities=("T1",)), schema=TUMOUR)
    for i, case in enumerate(manifest.cases):
        label = np.random.default_rng(i).choice(RAW, SHAPE)
        write_volume(manifest.label_path(case), label, AFFINE)
    return manifest


def test_msd_gets_remapped_values_and_the_whole_schema(tmp_path):
    manifest = remapped(tmp_path)
    WRITERS["msd"](Export(manifest, tmp_path / "out"))
    again = read_layout(tmp_path / "out", "msd").valid_manifest()
    assert again.schema == replace(TUMOUR, remap=())
    for case, other in zip(manifest.cases, again.cases, strict=True):
        raw, written = data(manifest.label_path(case)), data(again.label_path(other))
        assert {7, 9, 4} <= set(np.unique(raw)) and set(np.unique(written)) == {0, 1, 2, 3, 9}
        indices = TUMOUR.to_indices(raw, "raw")
        np.testing.assert_array_equal(again.schema.to_indices(written, "written"), indices)
        assert set(np.unique(indices)) == {0, 1, 2, 3, IGNORE}


def test_nnunet_gets_regions_in_an_order_that_writes_every_class_and_the_ignore_label_last(tmp_path):
    manifest = remapped(tmp_path)
    WRITERS["nnunet"](Export(manifest, tmp_path / "out"))
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3], "ignore": 4}
    assert list(content["labels"]) == ["background", "whole", "core", "enhancing", "ignore"]
    assert content["regions_class_order"] == [2, 1, 3]
    schema = LabelSchema.from_mapping(content["medaug"])
    assert (schema.names, schema.ignore, schema.remap) == (TUMOUR.names, 4, ())
    assert schema.structures() == TUMOUR.structures()
    again = read_layout(tmp_path / "out", "nnunet").valid_manifest()
    assert again.schema.structures() == TUMOUR.structures() and again.schema.ignore == 4
    for case in manifest.cases:
        written = data(tmp_path / f"out/labelsTr/{case.name}.nii.gz")
        expected = TUMOUR.to_indices(data(manifest.label_path(case)), "raw")
        np.testing.assert_array_equal(written, np.where(expected == IGNORE, 4, expected))
        # The way in which nnU-Net turns predicted regions into labels.
        painted = np.zeros_like(written)
        regions = [v for name, v in content["labels"].items() if name not in {"background", "ignore"}]
        for region, value in zip(regions, content["regions_class_order"], strict=True):
            painted[np.isin(written, region)] = value
        np.testing.assert_array_equal(painted, np.where(written == 4, 0, written))


@pytest.mark.parametrize(
    "regions",
    [
        {"a": [1, 2]},  # 3 is in none
        {"whole": [1, 2, 4], "again": [1, 2, 4], "core": [1, 4]},
        {"whole": [1, 2, 4], "rim": [4]},  # 1 and 2 are in the same regions
    ],
)
def test_regions_that_nnunet_cannot_write_become_plain_classes_with_a_warning(tmp_path, regions, caplog):
    schema = LabelSchema.from_mapping({**BRATS.to_mapping(), "regions": regions})
    WRITERS["nnunet"](Export(replace(cohort(tmp_path), schema=schema), tmp_path / "out"))
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
    assert "regions_class_order" not in content and "so the classes are written instead" in caplog.text


def test_a_class_called_ignore_is_refused_only_by_nnunet(tmp_path):
    labels = {"0": "background", "1": "a", "2": "b", "4": "ignore"}
    manifest = replace(cohort(tmp_path), schema=LabelSchema.from_mapping({"labels": labels}))
    with pytest.raises(UserError, match='ignores a label called "ignore"'):
        WRITERS["nnunet"](Export(manifest, tmp_path / "out"))
    WRITERS["msd"](Export(manifest, tmp_path / "out"))


@pytest.mark.parametrize("layout", NIFTI)
def test_a_rounded_affine_becomes_the_images_and_another_grid_is_refused(tmp_path, layout):
    manifest = cohort(tmp_path)
    first, *_, last = manifest.image_paths(manifest.cases[0])
    label = manifest.label_path(manifest.cases[0])
    for path in (last, label):
        write_volume(path, data(path), AFFINE + 2e-5 * np.eye(4, k=1))
    WRITERS[layout](Export(manifest, tmp_path / "out"))
    for path in [*(tmp_path / "out/imagesTr").iterdir(), *(tmp_path / "out/labelsTr").iterdir()]:
        np.testing.assert_array_equal(nib.load(path).affine[:3, :3], nib.load(first).affine[:3, :3])
    for path, said in (
        (last, "lies 0.5 mm away .* onto that grid"),
        (label, "the label lies 0.5 mm .* the image's grid"),
    ):
        kept = path.read_bytes()
        write_volume(path, data(path), AFFINE + 0.5 * np.eye(4, k=3))
        with pytest.raises(UserError, match=f"{path.name}: {said}"):
            WRITERS[layout](Export(manifest, tmp_path / "again"))
        path.write_bytes(kept)


@pytest.mark.parametrize("layout", NIFTI)
def test_values_that_training_cannot_use_are_refused(tmp_path, layout):
    manifest = cohort(tmp_path, dtype="float32")
    path = manifest.image_paths(manifest.cases[0])[1]
    image = data(path).copy()
    image[1, 2, 3] = np.nan
    write_volume(path, image, AFFINE)
    with pytest.raises(UserError, match=f"{path.name}: holds NaN"):
        WRITERS[layout](Export(manifest, tmp_path / "out"))
    fewer = replace(manifest, modalities=("T1", "T2"))
    with pytest.raises(UserError, match="case case0 has 4 volumes for 2 modalities"):
        WRITERS[layout](Export(fewer, tmp_path / "out"))


@pytest.mark.parametrize("layout", NIFTI)
@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden"])
def test_a_case_name_cannot_lead_out_of_the_folder(tmp_path, layout, name):
    manifest = cohort(tmp_path, num=1)
    manifest = replace(manifest, cases=(replace(manifest.cases[0], name=name),))
    with pytest.raises(UserError, match="cannot be a file name"):
        WRITERS[layout](Export(manifest, tmp_path / "out"))


@pytest.mark.parametrize("layout", NIFTI)
def test_phantoms_stay_phantoms(tmp_path, layout):
    manifest = cohort(tmp_path)
    for phantom in (True, False):
        out = tmp_path / f"out{phantom}"
        WRITERS[layout](Export(replace(manifest, phantom=phantom), out))
        assert json.loads((out / "dataset.json").read_text()).get("phantom", False) == phantom
        assert (out / "PHANTOM.txt").is_file() == phantom
        for path in out.rglob("*.nii.gz"):
            assert (b"phantom" in bytes(nib.load(path).header["descrip"])) == phantom
        assert read_layout(out, layout).manifest.phantom == phantom
