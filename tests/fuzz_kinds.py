"""The kinds of files to damage, each with an undamaged file and the function that reads it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fuzz_formats as formats
import fuzz_objects as objects
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import yaml
from dicom_files import axial, write_enhanced, write_series
from fuzz_formats import Mutator
from fuzz_runner import Kind
from pydicom.uid import DeflatedExplicitVRLittleEndian
from seg_files import write_rtstruct, write_seg

from medaug.cohort import LabelSchema, Manifest
from medaug.cohort.manifest import Case
from medaug.cohort.tables import read_attributes, read_splits, read_subjects
from medaug.dicom.convert import convert_case
from medaug.dicom.headers import scan_in_process
from medaug.dicom.privacy import Private, load_private, name_studies, save_private
from medaug.dicom.tree import plan_cohort
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_header, read_label, read_volumes
from medaug.layouts import read_layout
from medaug.layouts.rules import NO_RULES, read_rules

JSON = (formats.json_value, formats.json_value, formats.json_text)
YAML = (formats.yaml_value, formats.yaml_value, formats.yaml_text)
CSV = (formats.csv_cell,)
DICOM = (
    *(objects.dicom_value, objects.dicom_value, objects.dicom_length, objects.dicom_type, objects.dicom_border),
    *(objects.dicom_move, objects.dicom_nest, objects.dicom_deflated),
)
SCHEMA = LabelSchema(((0, "background"), (1, "core"), (4, "rim")), ignore=9)
Make = Callable[[Path], Path]


class Corpus:
    """Builds kinds, with their undamaged files in folders below `base`."""

    def __init__(self, base: Path) -> None:
        self.base, self.kinds = base, list[Kind]()

    def add(
        self, name: str, make: Make, read: Callable[[Path], object], knows: Sequence[Mutator], names: str = ""
    ) -> None:
        """Add a kind: `make` writes into an empty folder and returns the file to damage."""
        template = self.base / "sound" / name.replace(" ", "_")
        template.mkdir(parents=True)
        file = make(template).relative_to(template)
        self.kinds.append(Kind(name, template, self.base / "work", str(file), read, knows, names))


def volume_kinds(corpus: Corpus) -> None:
    """NIfTI, MetaImage and NRRD, as scans and as labels."""
    rng = np.random.default_rng(0)
    array = rng.normal(100, 30, (9, 10, 11)).astype(np.int16)
    label = rng.choice([0, 1, 4, 9], (9, 10, 11)).astype(np.uint8)
    affine = np.diag([1.0, 2, 3, 1])

    def nifti(name: str, image: Any) -> Make:
        return lambda folder: (nib.save(image, folder / name), folder / name)[1]

    def itk(name: str, pack: bool, values: Any = array, damaged: str = "") -> Make:
        def make(folder: Path) -> Path:
            image = sitk.GetImageFromArray(values)
            image.SetSpacing((1, 2, 3))
            sitk.WriteImage(image, str(folder / name), pack)
            return folder / (damaged or name)

        return make

    def label_of(path: Path) -> None:
        SCHEMA.to_indices(read_label(path).array, str(path))

    plain = (formats.nifti_field, formats.nifti_field, formats.nifti_border)
    gz = (*formats.packed(*plain), formats.gzip_wrapper, formats.nifti_scaled_bomb)
    text = (formats.header_line, formats.header_line, formats.text_bomb)
    stack = np.stack([array] * 2, -1)
    corpus.add("NIfTI .nii", nifti("a.nii", nib.Nifti1Image(array, affine)), read_scan, plain)
    corpus.add("NIfTI .nii.gz", nifti("a.nii.gz", nib.Nifti1Image(array, affine)), read_scan, gz)
    corpus.add("NIfTI-2 4-D .nii.gz", nifti("a.nii.gz", nib.Nifti2Image(stack, affine)), read_scan, gz[:-1])
    corpus.add("NIfTI label", nifti("l.nii.gz", nib.Nifti1Image(label, affine)), label_of, gz)
    corpus.add("NIfTI pair .hdr .img", nifti("a.img", nib.Nifti1Pair(array, affine)), read_scan, plain)
    corpus.add("MetaImage .mha", itk("a.mha", True), read_scan, text)
    corpus.add("MetaImage .mhd header", itk("a.mhd", False), read_scan, text)
    corpus.add(
        "MetaImage .raw", itk("a.mhd", False, damaged="a.raw"), lambda p: read_scan(p.with_name("a.mhd")), (), "a."
    )
    corpus.add("NRRD .nrrd", itk("a.nrrd", True), read_scan, text)
    corpus.add("NRRD .nhdr header", itk("a.nhdr", False), read_scan, text)
    corpus.add("NRRD label", itk("l.nrrd", True, label), label_of, text)


def read_scan(path: Path) -> None:
    """Read the header, then the voxels; they agree where both can be read."""
    header = read_header(path)
    for volume in read_volumes(path):
        assert (volume.array.shape, volume.dtype) == (header.shape, header.dtype)
        volume.array.sum()


def dicom_kinds(corpus: Corpus, tools: Callable[[str], str | None]) -> None:
    """Series of several compressions, enhanced multi-frame images, SEG and RTSTRUCT; each with its study."""

    def series(folder: Path, **tags: Any) -> list[Path]:
        rng = np.random.default_rng(1)
        array = rng.integers(0, 900, (16, 12, 4)).astype(np.int16)
        return write_series(folder, array, axial(), PatientID="P1", SeriesDescription="T1", **tags)

    def packed_by(*command: str) -> Make:
        def make(folder: Path) -> Path:
            images = series(folder)
            for image in images:
                subprocess.run([*command, str(image), f"{image}.new"], check=True, capture_output=True)
                Path(f"{image}.new").replace(image)
            return images[1]

        return make

    def saved_as(change: Callable[[pydicom.Dataset], None]) -> Make:
        def make(folder: Path) -> Path:
            image = series(folder)[1]
            dataset = pydicom.dcmread(image)
            change(dataset)
            dataset.save_as(image)
            return image

        return make

    def deflate(dataset: pydicom.Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    def rle(dataset: pydicom.Dataset) -> None:
        dataset.compress(pydicom.uid.RLELossless)

    def enhanced(folder: Path) -> Path:
        array = np.random.default_rng(1).integers(0, 900, (16, 12, 4)).astype(np.int16)
        return write_enhanced(folder / "scan.dcm", array, axial(), PatientID="P1", SeriesDescription="T1")

    mask = np.zeros((16, 12, 4), np.uint8)
    mask[4:8, 4:8, 1:3] = 1

    def seg(kind: str) -> Make:
        return lambda folder: write_seg(folder / "seg.dcm", series(folder), [mask], kind, names=["core"])

    def rtstruct(folder: Path) -> Path:
        box = np.array([(4, 4), (8, 4), (8, 8), (4, 8)]) - 0.5
        rings = [(axial() @ np.array([*box.T, np.full(4, z), np.ones(4)]))[:3].T for z in (1, 2)]
        return write_rtstruct(folder / "rt.dcm", {"core": rings, "other": rings}, series(folder)[0])

    for name, make in {
        "DICOM series": lambda folder: series(folder)[1],
        "DICOM RLE": saved_as(rle),
        "DICOM deflated": saved_as(deflate),
        "DICOM enhanced": enhanced,
        "DICOM SEG": seg("BINARY"),
        "DICOM SEG fractional": seg("FRACTIONAL"),
        "DICOM SEG label map": seg("LABELMAP"),
        "DICOM RTSTRUCT": rtstruct,
    }.items():
        corpus.add(name, make, read_dicom, DICOM, "a file")
    for name, tool, *flags in (
        ("DICOM JPEG", "dcmcjpeg", "+e1"),
        ("DICOM JPEG 2000", "gdcmconv", "--j2k"),
        ("DICOM JPEG-LS", "gdcmconv", "--jpegls"),
    ):
        if path := tools(tool):
            corpus.add(name, packed_by(path, *flags), read_dicom, DICOM, "a file")


def read_dicom(path: Path) -> None:
    """Plan and convert the study in a file's folder as `ingest` does; its findings, as an error that says "a file".

    Raises:
        UserError: for the findings that are errors; each names its files beside its text, for
            a path may name a patient.
    """
    rules = NO_RULES.__class__(modalities={"T1": {"SeriesDescription": "t1"}}, structures={"core": "core"})
    schema = LabelSchema(((0, "background"), (1, "core")))
    tree = scan_in_process(path.parent)
    studies = name_studies({series.study_uid: series.patient_id for series in tree.series}, Private("0" * 64), True)
    plan = plan_cohort(tree, rules, schema, studies, path.parent)
    wrong = {finding: files for finding, files in plan.files.items() if finding.severity == "error"}
    out = path.parent.parent / "converted"
    for case in plan.cases:
        files = [file for series in case.series for file in series.paths] + [label.path for label in case.labels]
        _, findings = convert_case(plan, ["T1"], out, case)
        wrong |= {finding: tuple(files) for finding in findings if finding.severity == "error"}
    for finding, files in wrong.items():
        assert files and str(path) not in finding.what, finding
    if wrong:
        raise UserError("a file: " + " | ".join(f"{finding.what}; {finding.remedy}" for finding in wrong))


def table_kinds(corpus: Corpus) -> None:
    """Files that a user writes (rules, tables of splits, subjects and attributes, dataset.json), or ingest."""
    cases = tuple(
        Case(f"c{i}", (f"c{i}.nii.gz",), f"l{i}.nii.gz", f"s{i}", ("train", "val", "test")[i % 3]) for i in range(6)
    )

    def text(name: str, content: str) -> Make:
        return lambda folder: ((folder / name).write_text(content), folder / name)[1]

    rules: dict[str, Any] = {
        "modalities": {"T1": {"SeriesDescription": "^ax t1"}, "T2": "t2"},
        "structures": {"core": "gtv|core"},
        "label": "**/l*",
        "case": "(c[0-9]+)",
        "labels": {0: "background", 1: "core", 4: "rim"},
        "regions": {"whole": [1, 4]},
        "ignore": 9,
        "remap": {3: 4},
    }
    pairs = {
        "modalities": {"T1": "*_t1.nii.gz"},
        "label": "*_seg.nii.gz",
        "case": "(.+)_",
        "labels": {0: "background", 1: "core"},
    }

    def rules_of(path: Path) -> None:
        LabelSchema.from_mapping(read_rules(path).schema, str(path))

    def scans(folder: Path) -> None:
        for name in ("a_t1", "a_seg", "b_t1", "b_seg"):
            write_volume(folder / f"{name}.nii.gz", np.zeros((3, 3, 3), np.uint8), np.eye(4))

    def with_scans(name: str, content: str) -> Make:
        return lambda folder: (scans(folder), text(name, content)(folder))[1]

    def pairs_of(path: Path) -> None:
        read_layout(path.parent, "pairs", read_rules(path))

    corpus.add(
        "rules .yaml",
        text("rules.yaml", yaml.safe_dump(rules | {"modalities": {"T1": {"EchoTime": "1"}}})),
        rules_of,
        YAML,
    )
    corpus.add("rules of pairs .yaml", with_scans("rules.yaml", yaml.safe_dump(pairs)), pairs_of, YAML, "work")
    splits = "case;split\n" + "".join(f"{case.name};{case.split}\n" for case in cases)
    corpus.add("splits .csv", text("splits.csv", splits), lambda path: read_splits(path, cases), CSV)
    folds = json.dumps([{"train": ["c0", "c1", "c2"], "val": ["c3", "c4", "c5"]}] * 2)
    corpus.add("splits_final.json", text("splits_final.json", folds), lambda path: read_splits(path, cases), JSON)
    subjects = "case,subject\n" + "".join(f"{case.name},person {i // 2}\n" for i, case in enumerate(cases))
    corpus.add("subjects .csv", text("subjects.csv", subjects), lambda path: read_subjects(path, cases), CSV)
    attributes = "case,site,age\n" + "".join(f"{case.name},A,{40 + i}\n" for i, case in enumerate(cases))
    corpus.add("attributes .csv", text("a.csv", attributes), lambda path: read_attributes(path, cases), CSV)

    manifest = Manifest("fuzz", "", ("T1",), SCHEMA, cases, "data")
    corpus.add(
        "manifest .json", lambda folder: (manifest.save(folder / "m.json"), folder / "m.json")[1], Manifest.load, JSON
    )
    msd = {"name": "x", "modality": {"0": "T1"}, "labels": {"0": "background", "1": "core"}, "numTraining": 2}
    msd |= {"training": [{"image": f"./{n}_t1.nii.gz", "label": f"./{n}_seg.nii.gz"} for n in "ab"]}
    corpus.add(
        "dataset.json of MSD",
        with_scans("dataset.json", json.dumps(msd)),
        lambda path: read_layout(path.parent, "msd", NO_RULES),
        JSON,
        "dataset.json",
    )
    nnunet = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "core": 1, "whole": [1, 2]}, "numTraining": 2}
    listed = {n: {"images": [f"{n}_t1.nii.gz"], "label": f"{n}_seg.nii.gz"} for n in "ab"}
    nnunet |= {"file_ending": ".nii.gz", "dataset": listed, "regions_class_order": [1, 2]}
    corpus.add(
        "dataset.json of nnU-Net",
        with_scans("dataset.json", json.dumps(nnunet)),
        lambda path: read_layout(path.parent, "nnunet", NO_RULES),
        JSON,
        "dataset.json",
    )
    private = Private("0123456789abcdef" * 4, {"S1": "P1"}, {"S1_1": {"subject": "S1", "study": "1.2"}}, [])
    corpus.add(
        "private file",
        lambda folder: (save_private(folder / "p.json", private), folder / "p.json")[1],
        load_private,
        JSON,
    )
