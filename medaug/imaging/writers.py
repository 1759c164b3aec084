"""Cohorts in other tools' layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.imaging.nifti import read_label, read_volumes, write_volume
from medaug.progress import track


def write_msd(manifest: Manifest, out: Path) -> None:
    """Medical Segmentation Decathlon: one image file per case (4-D where it has several modalities), dataset.json.

    Raises:
        UserError: as `_filled_whole` and the readers.
    """

    def write_case(case: Case, folder: Path) -> None:
        volumes = [v for path in manifest.image_paths(case) for v in read_volumes(path)]
        target = folder / "imagesTr" / f"{case.name}.nii.gz"
        if len(volumes) == 1:
            write_volume(target, volumes[0].array.astype(volumes[0].storage), volumes[0].affine, manifest.name)
        else:
            _write_stack(target, np.stack([v.array.astype(v.storage) for v in volumes], axis=-1), volumes[0].affine)
        _write_label(manifest, case, folder / "labelsTr" / f"{case.name}.nii.gz")

    def dataset(cases: list[Case]) -> dict[str, object]:
        return {
            "name": manifest.name,
            "description": manifest.description,
            "tensorImageSize": "3D" if len(manifest.modalities) == 1 else "4D",
            "modality": {str(i): name for i, name in enumerate(manifest.modalities)},
            "labels": manifest.schema.to_mapping(),
            "numTraining": len(cases),
            "numTest": 0,
            "training": [
                {
                    "image": f"./imagesTr/{c.name}.nii.gz",
                    "label": f"./labelsTr/{c.name}.nii.gz",
                    "subject": c.subject,
                }
                for c in cases
            ],
            "test": [],
        }

    _filled_whole(manifest, out, write_case, dataset)


def write_nnunet(manifest: Manifest, out: Path) -> None:
    """nnU-Net v2 raw: `imagesTr/NAME_0000.nii.gz` per modality, `labelsTr/NAME.nii.gz`, dataset.json.

    Label values must be consecutive there, so class indices are written.

    Raises:
        UserError: as `_filled_whole` and the readers.
    """

    def write_case(case: Case, folder: Path) -> None:
        volumes = [v for path in manifest.image_paths(case) for v in read_volumes(path)]
        for index, volume in enumerate(volumes):
            target = folder / "imagesTr" / f"{case.name}_{index:04d}.nii.gz"
            write_volume(target, volume.array.astype(volume.storage), volume.affine, manifest.name)
        _write_label(manifest, case, folder / "labelsTr" / f"{case.name}.nii.gz", as_indices=True)

    def dataset(cases: list[Case]) -> dict[str, object]:
        return {
            "name": manifest.name,
            "description": manifest.description,
            "channel_names": {str(i): name for i, name in enumerate(manifest.modalities)},
            "labels": {name: index for index, name in enumerate(manifest.schema.names)},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }

    _filled_whole(manifest, out, write_case, dataset)


WRITERS: dict[str, Callable[[Manifest, Path], None]] = {"msd": write_msd, "nnunet": write_nnunet}


def _filled_whole(
    manifest: Manifest,
    out: Path,
    write_case: Callable[[Case, Path], None],
    dataset: Callable[[list[Case]], dict[str, object]],
) -> None:
    """Fill a folder beside `out` and rename it at the end, so that `out` is whole or absent.

    Raises:
        UserError: `out` exists, or there is no labelled case.
    """
    cases = [case for case in manifest.cases if case.label is not None]
    if not cases:
        raise UserError(f"{manifest.name}: no labelled case to write")
    if out.exists():
        raise UserError(f"out={out}: exists already; give a folder that does not")
    unfinished = out.with_name(f".tmp-{os.getpid()}-{out.name}")
    try:
        for case in track(cases, "exporting"):
            write_case(case, unfinished)
        with atomic_write(unfinished / "dataset.json") as temporary:
            temporary.write_text(json.dumps(dataset(cases), indent=1) + "\n")
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_stack(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm", "sec")
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def _write_label(manifest: Manifest, case: Case, path: Path, as_indices: bool = False) -> None:
    source = manifest.label_path(case)
    assert source is not None
    label = read_label(source)
    indices = manifest.schema.to_indices(label.array, str(source))
    write_volume(path, indices if as_indices else manifest.schema.to_values(indices), label.affine, manifest.name)
