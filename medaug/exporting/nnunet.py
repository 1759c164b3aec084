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
    """nnU-Net v2 raw: `imagesTr/NAME_0000.nii.gz` per modality, `labelsTr/NAME.nii.gz`, dataset.json.

    Label values must be consecutive there, so class indices are written, the ignore label after the last class. Test
    cases become `imagesTs` and `labelsTs`; the splits "train" and "val" become the one fold of `splits_final.json`.
    `dataset.json` has a key "medaug" beside nnU-Net's own: subjects, attributes, and the label schema of the files, of
    which nnU-Net's "labels" hold regions or classes but not both.

    Raises:
        UserError: as `Export.fill`, `Export.images` and `Export.indices`, or a class is called "ignore".
    """
    manifest = export.manifest
    schema = _renumbered(manifest.schema)
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
            label = schema.to_values(export.indices(case, first))
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
            # SimpleITK, its usual reader, would place predictions on the nearest axes at right angles.
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

    A synthetic case is left out, with a warning, if a model behind it was trained on a validation subject: that
    subject's anatomy would be in the training data of what is then measured on it.

    Args:
        export: names the synthetic cases, and whom their generator saw.
        cases: for training and validation.
    """
    held_back = {case.subject for case in cases if case.split == "val"}
    leaks = {
        case.name
        for case in cases
        if case.name in export.records and held_back & {*export.records[case.name]["subjects"], *export.seen}
    }
    if leaks:
        log.warning("%d synthetic cases stand in no fold: their generator saw a validation subject", len(leaks))
    kept = [case for case in cases if case.name not in leaks]
    return {split: [case.name for case in kept if case.split == split] for split in ("train", "val")}


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
