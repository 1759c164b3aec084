"""nnU-Net's own integrity check of medaug's exports, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.exporting.nnunet import write_nnunet
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume

pytestmark = pytest.mark.slow

SHAPE = (9, 8, 6)
PLAIN = LabelSchema(((0, "background"), (1, "necrosis"), (2, "oedema"), (4, "enhancing")))
TUMOUR = replace(
    PLAIN, regions=(("whole", (1, 2, 4)), ("core", (1, 4)), ("enhancing", (4,))), ignore=255, remap=((3, 4),)
)
COMMITTED = Path(__file__).parents[2] / "data_manifests" / "hippocampus.json"

CHECK = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager
import glob, json
if __name__ == "__main__":
    verify_dataset_integrity(sys.argv[1], 1)
    content = json.load(open(sys.argv[1] + "/dataset.json"))
    manager = LabelManager(content["labels"], content.get("regions_class_order"))
    image = sorted(glob.glob(sys.argv[1] + "/imagesTr/*.nii.gz"))[0]
    reader = determine_reader_writer_from_dataset_json(content, image)()
    array, properties = reader.read_images([image])
    reader.write_seg(array[0].astype("u1"), sys.argv[2], properties)
    print(json.dumps([manager.has_regions, manager.ignore_label, [int(v) for v in manager.all_labels]]))
"""


def verify(nnunet: Callable[..., Any], folder: Path) -> tuple[bool, int | None, list[int]]:
    """How nnU-Net reads the labels after its check has passed; `prediction.nii.gz` is written in its way."""
    return tuple(nnunet(CHECK, folder, folder.parent / "prediction.nii.gz"))


def data(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def cohort(root: Path, schema: LabelSchema, affine: np.ndarray) -> Manifest:
    rng = np.random.default_rng(0)
    raw = [*schema.values, *([] if schema.ignore is None else [schema.ignore]), *dict(schema.remap)]
    cases = []
    for i, split in enumerate(("train", "train", "val", "test")):
        for m in range(2):
            write_volume(root / f"{i}_{m}.nii.gz", rng.integers(0, 900, SHAPE).astype(np.int16), affine)
        write_volume(root / f"{i}_seg.nii.gz", rng.choice(raw, SHAPE).astype(np.uint8), affine + 1e-5)
        cases.append(Case(f"c{i}", (f"{i}_0.nii.gz", f"{i}_1.nii.gz"), f"{i}_seg.nii.gz", f"s{i}", split))
    return Manifest("toy", "", ("T1", "FLAIR"), schema, tuple(cases), str(root), phantom=True)


def turned(shear: float) -> np.ndarray:
    affine = np.array([[0, -1.5, 0, 10], [1.2, 0, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    affine[0, 2] += shear
    return affine


@pytest.mark.parametrize(("schema", "shear"), [(PLAIN, 0.0), (TUMOUR, 1e-3), (TUMOUR, 0.4)])
def test_two_modalities_pass_and_read_back_equal(tmp_path, nnunet, schema, shear):
    manifest = cohort(tmp_path, schema, turned(shear))
    out = tmp_path / "Dataset501_Toy"
    record = {"checkpoint": "0", "subjects": ["s0"]}  # synthetic: with JSON files beside its volumes
    write_nnunet(Export(manifest, out, {"c0": record}))
    assert (out / "imagesTr/c0_0000.json").exists()
    ignored = 4 if schema is TUMOUR else None
    assert verify(nnunet, out) == (schema is TUMOUR, ignored, [0, 1, 2, 3])
    # Not on the nearest perpendicular axes, which SimpleITK would use.
    np.testing.assert_allclose(nib.load(tmp_path / "prediction.nii.gz").affine, turned(shear), atol=1e-5)
    written = LabelSchema.from_mapping(json.loads((out / "dataset.json").read_text())["medaug"])
    for case in manifest.cases:
        part = "Ts" if case.split == "test" else "Tr"
        for m, path in enumerate(manifest.image_paths(case)):
            copy = out / f"images{part}/{case.name}_{m:04d}.nii.gz"
            np.testing.assert_array_equal(data(copy), data(path))
            np.testing.assert_array_equal(nib.load(copy).affine, nib.load(path).affine)
        indices = schema.to_indices(data(manifest.label_path(case)), "label")
        assert (IGNORE in indices) == (schema is TUMOUR)
        label = data(out / f"labels{part}/{case.name}.nii.gz")
        np.testing.assert_array_equal(written.to_indices(label, "written"), indices)


def test_voxels_that_a_confidence_map_doubts_pass_as_ignored(tmp_path, nnunet):
    manifest = cohort(tmp_path, PLAIN, turned(0))
    confidence = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    write_volume(tmp_path / "map.nii.gz", confidence, turned(0))
    cases = (replace(manifest.cases[0], confidence="map.nii.gz"), *manifest.cases[1:])
    out = tmp_path / "Dataset501_Toy"
    write_nnunet(Export(replace(manifest, cases=cases), out))
    assert verify(nnunet, out) == (False, 4, [0, 1, 2, 3])
    np.testing.assert_array_equal(data(out / "labelsTr/c0.nii.gz") == 4, confidence == 0)


def test_a_value_too_many_is_found_by_nnunet(tmp_path, nnunet):
    out = tmp_path / "Dataset501_Toy"
    write_nnunet(Export(cohort(tmp_path, TUMOUR, turned(0)), out))
    path = out / "labelsTr/c0.nii.gz"
    label = data(path).copy()
    label[0, 0, 0] = 5
    write_volume(path, label, nib.load(path).affine)
    with pytest.raises(AssertionError, match="nexpected labels"):
        verify(nnunet, out)


def test_a_part_of_the_hippocampus_cohort_passes(tmp_path, nnunet, medaug_data):
    whole = Manifest.load(COMMITTED, medaug_data / "Task04_Hippocampus")
    cases = [case for split in ("train", "val", "test") for case in whole.split(split)[:4]]
    out = tmp_path / "Dataset504_Hippocampus"
    write_nnunet(Export(replace(whole, cases=tuple(cases)), out))
    assert verify(nnunet, out) == (False, None, [0, 1, 2])
    assert len(list((out / "imagesTr").iterdir())) == 8 and len(list((out / "labelsTs").iterdir())) == 4
    (fold,) = json.loads((out / "splits_final.json").read_text())
    assert fold == {split: [case.name for case in whole.split(split)[:4]] for split in ("train", "val")}
    for case in cases:
        part = "Ts" if case.split == "test" else "Tr"
        np.testing.assert_array_equal(data(out / f"labels{part}/{case.name}.nii.gz"), data(whole.label_path(case)))
