"""Export as DICOM: one series per modality, and a DICOM SEG that refers to the first of them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.dicom.stack import right_angled
from medaug.errors import UserError
from medaug.exporting.dicom_series import DATE, LONGEST, TIME, Stored, Study, kind_of, series_of
from medaug.exporting.request import Export
from medaug.files import atomic_write, writing
from medaug.imaging.volume import RIGHT_ANGLE, Header, shear

log = logging.getLogger(__name__)

BINARY, LABELMAP = "BINARY", "LABELMAP"


def write_dicom(export: Export) -> None:
    """Write DICOM: `CASE/MODALITY/0001.dcm` and so on, `CASE/SEG.dcm`, and `rules.yaml`, which `ingest` needs.

    UIDs are derived from the content of a case and its recipe: the same pair gives the same files, and a changed pair
    gets other UIDs. All objects of a case share one frame of reference. The PatientID is the subject; for synthetic
    pairs it begins with SYNTHETIC-, so that they are never filed under a real patient.

    Raises:
        UserError: as for `Export.fill`, `Export.images` and `Export.indices`; or axes are not at right angles, a name
            is longer than DICOM allows, a label has ignored voxels, or a LABELMAP is asked for and there are regions.
    """
    manifest = export.manifest
    _check(manifest, export.segmentation)
    folders = [re.sub(r"[^A-Za-z0-9.-]+", "-", modality) for modality in manifest.modalities]
    rounding = dict.fromkeys(manifest.modalities, 0.0)

    def write_case(case: Case, folder: Path) -> None:
        images, first = export.images(case)
        affine = _straight(export, case, first)
        label = None if case.label is None else _label(export, case, first)
        study = _study(export, case, images, label, affine)
        series: list[list[FileDataset]] = []
        for number, (modality, image) in enumerate(zip(manifest.modalities, images, strict=True), start=1):
            kind = kind_of(modality)
            stored = Stored.of(image, through_zero=kind.modality == "PT")
            rounding[modality] = max(rounding[modality], stored.error)
            series.append(series_of(study, kind, number, modality, stored, affine))
            for dataset in series[-1]:
                export.mark_dicom(case, dataset)
            _save(series[-1], folder / case.name / folders[number - 1])
        if label is not None:
            seg = segmentation(study, series[0], label, manifest.schema, export.segmentation, len(images) + 1)
            export.mark_dicom(case, seg)
            with atomic_write(folder / case.name / "SEG.dcm") as temporary:
                seg.save_as(temporary, enforce_file_format=True)

    def files(cases: list[Case]) -> dict[str, Any]:
        for modality, error in rounding.items():
            if error:
                log.info("%s: values were rounded to 16 bits; the largest difference is %.3g", modality, error)
        return {"rules.yaml": _rules(manifest)}

    export.fill(write_case, files)


def segmentation(
    study: Study, series: Sequence[Dataset], label: NDArray[np.uint8], schema: LabelSchema, kind: str, number: int
) -> Dataset:
    """Make a DICOM SEG with one segment per foreground class and, if it is BINARY, one per region after them.

    Args:
        study: the case's study.
        series: the image that the SEG refers to, in the order of its slices.
        label: (X, Y, Z) class indices.
        schema: the classes.
        kind: BINARY or LABELMAP.
        number: SeriesNumber.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    names = [*schema.foreground, *_regions(schema)]
    planes = np.ascontiguousarray(label.transpose(2, 1, 0))
    if len(names) > len(schema.foreground):
        members = [(index,) for index in range(1, schema.num_classes)] + [*_regions(schema).values()]
        planes = np.stack([np.isin(planes, list(indices)) for indices in members], axis=-1).astype(np.uint8)
    made_by = AlgorithmIdentificationSequence("medaug", codes.DCM.ArtificialIntelligence, version("medaug"))
    described = [
        SegmentDescription(
            segment_number=index,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC" if study.synthetic else "MANUAL",
            algorithm_identification=made_by if study.synthetic else None,
        )
        for index, name in enumerate(names, start=1)
    ]
    made: Dataset = Segmentation(
        source_images=series,
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=study.uid("segmentation series", kind),
        series_number=number,
        sop_instance_uid=study.uid("segmentation", kind),
        instance_number=1,
        manufacturer="medaug",
        manufacturer_model_name="medaug",
        software_versions=version("medaug"),
        device_serial_number="0",
        content_label="MEDAUG",
        series_description="Segmentation",
    )
    for keyword in ("ContentDate", "InstanceCreationDate", "ContentTime", "InstanceCreationTime"):
        setattr(made, keyword, DATE if keyword.endswith("Date") else TIME)
    made.SpecificCharacterSet = "ISO_IR 192"
    made.StudyDescription = study.case
    for item in made.DimensionOrganizationSequence:  # highdicom makes a random UID
        _replace_uid(made, item.DimensionOrganizationUID, study.uid("dimensions", kind))
    study.mark(made)
    return made


def _replace_uid(dataset: Dataset, old: str, new: str) -> None:
    for element in dataset.iterall():
        if element.VR == "UI" and element.value == old:
            element.value = new


def _regions(schema: LabelSchema) -> dict[str, tuple[int, ...]]:
    """Return the regions that consist of several classes: name to class indices."""
    return {name: indices for name, indices in schema.structures().items() if len(indices) > 1}


def _check(manifest: Manifest, kind: str) -> None:
    schema = manifest.schema
    if kind == LABELMAP and _regions(schema):
        raise UserError(
            f"{manifest.name}: the regions {', '.join(_regions(schema))} overlap classes, which a LABELMAP cannot hold",
            f"give segmentation={BINARY}, or remove the regions from the manifest",
        )
    if twice := {*schema.foreground} & {*_regions(schema)}:
        raise UserError(f"{manifest.name}: {', '.join(sorted(twice))} is both a class and a region", "rename one")
    texts = [("modality", name) for name in manifest.modalities]
    texts += [("class", name) for name in (*schema.foreground, *_regions(schema))]
    texts += [
        (kind, text)
        for case in manifest.cases
        for kind, text in (("case", case.name), ("subject", _patient(case, True)))
    ]
    for what, text in texts:
        if len(text) > LONGEST or "\\" in text or not text.isprintable():
            raise UserError(
                f"{what} {text}: DICOM holds at most {LONGEST} printable characters here, and no backslash",
                "rename it in the manifest",
            )


def _rules(manifest: Manifest) -> str:
    """Return the rules file that `ingest` needs to recognise modalities and classes."""
    schema = {key: value for key, value in manifest.schema.to_mapping().items() if key != "remap"}
    modalities = {name: {"SeriesDescription": f"^{re.escape(name)}$"} for name in manifest.modalities}
    return yaml.safe_dump({"modalities": modalities, **schema}, sort_keys=False, allow_unicode=True)


def _patient(case: Case, synthetic: bool) -> str:
    return f"SYNTHETIC-{case.subject}" if synthetic else case.subject


def _straight(export: Export, case: Case, grid: Header) -> NDArray[np.float64]:
    """Return the affine of a case with exactly perpendicular axes, as DICOM requires."""
    if shear(grid.affine).max() > RIGHT_ANGLE:
        raise UserError(
            "its axes are not at right angles, which DICOM cannot describe",
            "resample it to a grid with right angles, or leave the case out",
            path=export.manifest.image_paths(case)[0],
        )
    return right_angled(grid.affine, grid.shape)


def _label(export: Export, case: Case, grid: Header) -> NDArray[np.uint8]:
    label = export.indices(case, grid)
    if (label == IGNORE).any():
        raise UserError(
            "holds ignored voxels, which a DICOM SEG cannot mark",
            "give them a class, or choose another format",
            path=export.manifest.label_path(case),
        )
    return label


def _study(
    export: Export,
    case: Case,
    images: Sequence[NDArray[Any]],
    label: NDArray[np.uint8] | None,
    affine: NDArray[np.float64],
) -> Study:
    """Return the study of a case; its digest covers the case's name, recipe, voxels, voxel types and geometry."""
    record = export.records.get(case.name)
    digest = hashlib.sha256(json.dumps([case.name, case.subject, record], sort_keys=True).encode())
    for array in (affine, *images, *([] if label is None else [label])):
        digest.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    synthetic = record is not None
    what = f"synthetic image of a diffusion model, checkpoint {record['checkpoint']}" if record else "exported scan"
    what = "computer-made phantom, not a patient" if export.manifest.phantom and not synthetic else what
    return Study(
        digest.hexdigest(),
        _patient(case, synthetic),
        case.name,
        synthetic or export.manifest.phantom,
        f"medaug: {what}",
    )


def _save(series: Sequence[FileDataset], folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True)
        for dataset in series:
            dataset.save_as(folder / f"{dataset.InstanceNumber:04d}.dcm", enforce_file_format=True)
