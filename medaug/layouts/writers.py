"""Cohorts in other tools' layouts.

Both writers take any manifest. Cases for training and validation are written where the tool trains, which needs their
labels: those without are left out. Test cases never go there. Every volume of a case is written with the affine of its
first image, so that what differs by rounding agrees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.files import atomic_write, put_folder, temporary_folder, write_json
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_label, read_volumes
from medaug.imaging.volume import RIGHT_ANGLE, Header, Volume, grid_difference, is_finite, shear
from medaug.layouts import PHANTOM_MARK
from medaug.progress import track
from medaug.tables import Table

log = logging.getLogger(__name__)


def _silent() -> None:
    pass


@runtime_checkable
class ExportFormat(Protocol):
    """An entry of the table of export formats: writes a cohort in the layout of another tool."""

    def __call__(self, manifest: Manifest, out: Path, announce: Callable[[], None] = _silent) -> None:
        """Write a manifest's cases to a folder that does not exist yet.

        Args:
            manifest: the cohort.
            out: the folder; it is whole or absent.
            announce: to be called when all files are written, just before the folder gets its name.
        """


def write_msd(manifest: Manifest, out: Path, announce: Callable[[], None] = _silent) -> None:
    """Medical Segmentation Decathlon: one image file per case (4-D where it has several modalities), dataset.json.

    Test cases become `imagesTs`, listed under "test" without their labels, as MSD does. Remapped label values are
    written as what they stand for.

    Raises:
        UserError: as `_filled_whole`, the readers, or files of one case on different grids.
    """
    schema = replace(manifest.schema, remap=())
    note = _note(manifest)

    def write_case(case: Case, folder: Path) -> None:
        part = _part(case)
        images, first = _read_images(manifest, case)
        target = folder / f"images{part}" / f"{case.name}.nii.gz"
        if len(images) == 1:
            write_volume(target, images[0], first.affine, note)
        else:
            _write_stack(target, np.stack(images, axis=-1), first.affine, note)
        if part == "Tr":
            label = schema.to_values(_read_indices(manifest, case, first))
            write_volume(folder / "labelsTr" / f"{case.name}.nii.gz", label, first.affine, note)

    def files(cases: list[Case]) -> dict[str, Any]:
        listed = {part: [c for c in cases if _part(c) == part] for part in ("Tr", "Ts")}
        dataset = {
            "name": manifest.name,
            "description": manifest.description,
            **({"phantom": True} if manifest.phantom else {}),
            "tensorImageSize": "3D" if len(manifest.modalities) == 1 else "4D",
            "modality": {str(i): name for i, name in enumerate(manifest.modalities)},
            **schema.to_mapping(),
            "numTraining": len(listed["Tr"]),
            "numTest": len(listed["Ts"]),
            "training": [
                {
                    "image": f"./imagesTr/{c.name}.nii.gz",
                    "label": f"./labelsTr/{c.name}.nii.gz",
                    "subject": c.subject,
                    "split": c.split,
                    **({"attributes": dict(c.attributes)} if c.attributes else {}),
                }
                for c in listed["Tr"]
            ],
            "test": [f"./imagesTs/{c.name}.nii.gz" for c in listed["Ts"]],
        }
        return {"dataset.json": dataset}

    _filled_whole(manifest, out, write_case, files, announce)


def write_nnunet(manifest: Manifest, out: Path, announce: Callable[[], None] = _silent) -> None:
    """nnU-Net v2 raw: `imagesTr/NAME_0000.nii.gz` per modality, `labelsTr/NAME.nii.gz`, dataset.json.

    Label values must be consecutive there, so class indices are written, the ignore label after the last class. Test
    cases become `imagesTs` and `labelsTs`; the splits "train" and "val" become the one fold of `splits_final.json`.
    `dataset.json` has a key "medaug" beside nnU-Net's own: subjects, attributes, and the label schema of the files, of
    which nnU-Net's "labels" hold regions or classes but not both.

    Raises:
        UserError: as `_filled_whole`, the readers, files of one case on different grids, or a class called "ignore".
    """
    schema = _renumbered(manifest.schema)
    labels, order = _nnunet_labels(schema)
    note = _note(manifest)
    sheared = False

    def write_case(case: Case, folder: Path) -> None:
        nonlocal sheared
        part = _part(case)
        images, first = _read_images(manifest, case)
        sheared = sheared or shear(first.affine).max() > RIGHT_ANGLE / 2
        for index, image in enumerate(images):
            write_volume(folder / f"images{part}" / f"{case.name}_{index:04d}.nii.gz", image, first.affine, note)
        if case.label is not None:
            label = schema.to_values(_read_indices(manifest, case, first))
            write_volume(folder / f"labels{part}" / f"{case.name}.nii.gz", label, first.affine, note)

    def files(cases: list[Case]) -> dict[str, Any]:
        training = [case for case in cases if _part(case) == "Tr"]
        splits = {name: [case.name for case in training if case.split == name] for name in ("train", "val")}
        attributes = {case.name: dict(case.attributes) for case in cases if case.attributes}
        dataset = {
            "name": manifest.name,
            "description": manifest.description,
            **({"phantom": True} if manifest.phantom else {}),
            "channel_names": {str(i): name for i, name in enumerate(manifest.modalities)},
            "labels": labels,
            **({"regions_class_order": order} if order else {}),
            "numTraining": len(training),
            "file_ending": ".nii.gz",
            # SimpleITK, its usual reader, would place predictions on the nearest axes at right angles.
            **({"overwrite_image_reader_writer": "NibabelIO"} if sheared else {}),
            "medaug": {
                "subjects": {case.name: case.subject for case in cases},
                **({"attributes": attributes} if attributes else {}),
                **schema.to_mapping(),
            },
        }
        return {"dataset.json": dataset, **({"splits_final.json": [splits]} if all(splits.values()) else {})}

    _filled_whole(manifest, out, write_case, files, announce)


WRITERS = Table("export_formats", "export format", ExportFormat, {"msd": write_msd, "nnunet": write_nnunet})


def _filled_whole(
    manifest: Manifest,
    out: Path,
    write_case: Callable[[Case, Path], None],
    files: Callable[[list[Case]], Mapping[str, Any]],
    announce: Callable[[], None],
) -> None:
    """Fill a folder beside `out` and rename it at the end, so that `out` is whole or absent.

    `announce` is called when all files are written, just before the folder gets its name.

    Raises:
        UserError: `out` exists, there is no labelled case to train on, or a case cannot be the name of a file.
    """
    cases = [case for case in manifest.cases if case.label is not None or case.split == "test"]
    if not any(_part(case) == "Tr" for case in cases):
        raise UserError(f"{manifest.name}: no labelled case to write", "the layout needs one for training")
    for case in cases:
        if Path(case.name).name != case.name or case.name.startswith("."):
            raise UserError(
                f"{manifest.name}: case {case.name} cannot be the name of a file", "rename it in the manifest"
            )
    if out.exists():
        raise UserError(f"out={out}: exists already", "give a folder that does not")
    if left := len(manifest.cases) - len(cases):
        log.warning("%d cases for training have no label and are left out", left)
    with temporary_folder(out) as unfinished:
        for case in track(cases, "exporting"):
            write_case(case, unfinished)
        for name, content in files(cases).items():
            write_json(unfinished / name, content)
        if manifest.phantom:
            with atomic_write(unfinished / PHANTOM_MARK) as temporary:
                temporary.write_text(f"{manifest.name}: computer-made phantoms, not patients\n")
        announce()
        put_folder(unfinished, out)


def _part(case: Case) -> str:
    return "Ts" if case.split == "test" else "Tr"


def _note(manifest: Manifest) -> str:
    """The note in every exported header; not the cohort's name, which may be that of a patient's folder."""
    return "medaug export, phantom" if manifest.phantom else "medaug export"


def _read_images(manifest: Manifest, case: Case) -> tuple[list[NDArray[Any]], Header]:
    """The modalities of a case, each (X, Y, Z) in its own type, and the grid of the first."""
    volumes = [(path, volume) for path in manifest.image_paths(case) for volume in read_volumes(path)]
    path, first = volumes[0]
    if len(volumes) != len(manifest.modalities):
        wanted = len(manifest.modalities)
        raise UserError(
            f"{len(volumes)} volumes of case {case.name} for {wanted} modalities", "mend the manifest", path=path
        )
    for path, volume in volumes:
        _check_grid(path, first.header, volume)
        if not is_finite(volume.array):
            raise UserError("holds NaN or infinite values", "replace them, or leave the case out", path=path)
    return [volume.array.astype(volume.storage) for _, volume in volumes], first.header


def _read_indices(manifest: Manifest, case: Case, first: Header) -> NDArray[np.uint8]:
    path = manifest.label_path(case)
    assert path is not None
    label = read_label(path)
    _check_grid(path, first, label)
    return manifest.schema.to_indices(label.array, str(path))


def _check_grid(path: Path, first: Header, volume: Volume) -> None:
    if difference := grid_difference(first, volume.header):
        raise UserError(f"{difference} of the case's first image", "resample it onto that grid", path=path)


def _renumbered(schema: LabelSchema) -> LabelSchema:
    """The same classes and regions with class indices for values, what is ignored after the last."""
    return LabelSchema(
        labels=tuple(enumerate(schema.names)),
        regions=tuple(schema.structures().items()) if schema.regions else (),
        ignore=None if schema.ignore is None else schema.num_classes,
    )


def _nnunet_labels(schema: LabelSchema) -> tuple[dict[str, Any], list[int]]:
    """`labels` and `regions_class_order` of nnU-Net's dataset.json for a schema of consecutive values.

    nnU-Net predicts each region by itself and then writes one value per region, in order, later regions over earlier
    ones. Every class can be written so if, from the last region to the first, each has exactly one class that no later
    one has. Where that is not so, the plain classes are given and the list is empty.

    Raises:
        UserError: a class or region is called "ignore", which has a meaning of its own in nnU-Net.
    """
    if "ignore" in {*schema.names, *dict(schema.regions)}:
        raise UserError('labels: nnU-Net leaves out what is called "ignore"', "rename it, or give its value as ignore")
    ignored = {} if schema.ignore is None else {"ignore": schema.ignore}
    waiting = {name: set(values) for name, values in schema.regions}
    ordered: dict[str, int] = {}
    later: set[int] = set()
    while name := next((name for name, values in waiting.items() if len(values - later) == 1), None):
        (value,) = waiting[name] - later
        ordered = {name: value} | ordered
        later |= waiting.pop(name)
    if waiting or (schema.regions and later != set(schema.values[1:])):
        log.warning("nnU-Net cannot write these regions as one label each; it gets the plain classes")
        ordered = {}
    members = dict(schema.regions)
    regions = {name: list(members[name]) for name in ordered}
    classes = {name: value for value, name in schema.labels[1:]}
    return {"background": 0, **(regions or classes), **ignored}, list(ordered.values())


def _write_stack(path: Path, array: NDArray[Any], affine: NDArray[np.float64], description: str) -> None:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with atomic_write(path) as temporary:
        nib.save(image, temporary)
