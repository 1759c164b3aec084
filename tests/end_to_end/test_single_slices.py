"""Scans of one slice pass through every stage without added slices."""

from __future__ import annotations

import faults
import pytest

from medaug.cohort import Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_header


@pytest.mark.slow
def test_single_slices_are_trained_generated_and_measured_as_single_slices(stage, tmp_path):
    for index in range(12):
        made = faults.scan(index)
        write_volume(tmp_path / "data/images" / f"c{index:02d}.nii.gz", made["t1"][..., 10:11], faults.AFFINE)
        write_volume(tmp_path / "data/labels" / f"c{index:02d}.nii.gz", made["seg"][..., 10:11], faults.AFFINE)
    pairs = ("images=images/*.nii.gz", "labels=labels/*.nii.gz", "classes=[background,core,oedema,air,rim]")
    smoke = ("experiment=cohort", "preset=smoke")
    for words in (
        ("ingest", "root=data", *pairs, "out=cohort.json"),
        ("train", *smoke, "data.manifest=cohort.json", "network=unet2d"),
        ("generate", *smoke),
        ("audit", *smoke),
        ("benchmark", *smoke),
    ):
        done = stage(*words)
        assert done.returncode == 0, done.stderr
        if words[0] == "train":
            assert "9 training scans" in done.stderr and "grid 24x32x1, 9 slices" in done.stderr
    synthetic = Manifest.load(tmp_path / "runs/cohort/synthetic/manifest.json")
    assert {read_header(synthetic.image_paths(case)[0]).shape for case in synthetic.cases} == {(24, 28, 1)}
