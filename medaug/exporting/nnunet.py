"""Export as raw data of nnU-Net v2."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.exporting.request import Export, training_part
from medaug.imaging.volume import RIGHT_ANGLE, shear

log = logging.getLogger(__name__)


def write_nnunet(export: Export) -> None:
    """Write nnU-Net v2 raw data: `imagesTr/NAME_0000.nii.gz` per modality, `labelsTr/NAME.nii.gz`, dataset.json.

    nnU-Net needs consecutive label values, so class indices are written; the ignore label comes after the last class.
    It also marks the voxels that the confidence maps of pairs doubt, unless `export.confidence` is false.
    Test cases are written to `imagesTs` and `labelsTs`; the splits "train" and "val" become the only fold of
    `splits_final.json`. `dataset.json` has an additional key "medaug": subjects, attributes, and the label schema of
    the files, because nnU-Net's "labels" can hold either regions or classes, but not both.

    Raises:
        UserError: as for `Export.fill`, `Export.images` and `Export.indices`; or a class is called "ignore".
    """
    manifest = export.manifest
    maps = export.confidence and any(case.confidence is not None for case in manifest.cases)
    schema = _renumbered(manifest.schema, maps)
    labels, order = _nnunet_labels(schema)
    sheared = False

    def write_case(case: Case, folder: Path) -> None:
        nonlocal sheared
        part = training_part(case)
        images, first = export.images(case)
        sheared = sheared or shear(first.affine).max() > RIGHT_ANGLE / 2
        for index, image in enumerate(images):
            export.write(case, folder / f"images{part}" / f"{case.name}_{index:04d}.nii.gz", image, first.affine)
        if case.label is not None:
            label = schema.to_values(export.trusted(case, first))
            export.write(case, folder / f"labels{part}" / f"{case.name}.nii.gz", label, first.affine)

    def files(cases: list[Case]) -> dict[str, Any]:
        training = [case for case in cases if training_part(case) == "Tr"]
        splits = fold(export, training)
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
            # nnU-Net's default reader, SimpleITK, would place predictions on the nearest perpendicular axes.
            **({"overwrite_image_reader_writer": "NibabelIO"} if sheared else {}),
            "medaug": {
                "subjects": {case.name: case.subject for case in cases},
                **({"attributes": attributes} if attributes else {}),
                **schema.to_mapping(),
            },
        }
        return {"dataset.json": dataset, **({"splits_final.json": [splits]} if all(splits.values()) else {})}

    export.fill(write_case, files)


def fold(export: Export, cases: Sequence[Case]) -> dict[str, list[str]]:
    """The names of the cases in "train" and "val", as one fold of `splits_final.json`.

    A synthetic case is left out, with a warning, if a model that made it was trained on a validation subject: a network
    trained on the case would then be validated on a subject whose anatomy it has seen.

    Args:
        export: says which cases are synthetic, and which subjects their generator saw.
        cases: cases for training and validation.
    """
    held_back = {case.subject for case in cases if case.split == "val"}
    leaks = {
        case.name
        for case in cases
        if case.name in export.records and held_back & {*export.records[case.name]["subjects"], *export.seen}
    }
    if leaks:
        log.warning("%d synthetic cases are in no fold, because their generator saw a validation subject", len(leaks))
    kept = [case for case in cases if case.name not in leaks]
    return {split: [case.name for case in kept if case.split == split] for split in ("train", "val")}


def _renumbered(schema: LabelSchema, maps: bool) -> LabelSchema:
    """Return the schema with class indices as values; the ignored value, if one is used, comes after the last class."""
    return LabelSchema(
        labels=tuple(enumerate(schema.names)),
        regions=tuple(schema.structures().items()) if schema.regions else (),
        ignore=schema.num_classes if maps or schema.ignore is not None else None,
    )


def _nnunet_labels(schema: LabelSchema) -> tuple[dict[str, Any], list[int]]:
    """Return `labels` and `regions_class_order` of nnU-Net's dataset.json for a schema with consecutive values.

    nnU-Net predicts each region separately and then writes one value per region, in order; later regions overwrite
    earlier ones. This can represent every class only if, going from the last region to the first, each region has
    exactly one class that is in no later region. Otherwise the classes are returned, with an empty order.

    Raises:
        UserError: a class or region is called "ignore", which has a special meaning in nnU-Net.
    """
    if "ignore" in {*schema.names, *dict(schema.regions)}:
        raise UserError('labels: nnU-Net ignores a label called "ignore"', "rename it, or set ignore to its value")
    ignored = {} if schema.ignore is None else {"ignore": schema.ignore}
    remaining = {name: set(values) for name, values in schema.regions}
    ordered: dict[str, int] = {}
    later: set[int] = set()
    while name := next((name for name, values in remaining.items() if len(values - later) == 1), None):
        (value,) = remaining[name] - later
        ordered = {name: value} | ordered
        later |= remaining.pop(name)
    if remaining or (schema.regions and later != set(schema.values[1:])):
        log.warning("nnU-Net cannot represent these regions by one label each, so the classes are written instead")
        ordered = {}
    members = dict(schema.regions)
    regions = {name: list(members[name]) for name in ordered}
    classes = {name: value for value, name in schema.labels[1:]}
    return {"background": 0, **(regions or classes), **ignored}, list(ordered.values())
