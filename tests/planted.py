"""Faults that can be planted in one case of the good cohort, and the finding that each must cause."""

from __future__ import annotations

import gzip
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
from faults import (
    AFFINE,
    INFINITE,
    NO_FORMS,
    RGB,
    SHAPE,
    Fault,
    affine,
    bit_flipped,
    change_bytes,
    convert,
    copied,
    copied_into_test,
    directory,
    in_place_of,
    instead,
    label_of_good_01,
    metal,
    moved,
    noise,
    path_of,
    put,
    removed,
    renamed,
    repacked,
    replacing,
    rewrite,
    save,
    scan,
    singular,
    spoil_header,
    swapped,
    third_file,
    turn,
    turned,
    turned_copy,
    two_affines,
    write_case,
)
from scipy import ndimage

from medaug.cohort import Case
from medaug.cohort.findings import Finding
from medaug.preflight import Report

FAULTS: dict[str, Fault] = {
    # files
    "image missing": Fault("missing-file", "error", "_t2.nii.gz: does not exist", removed("t2")),
    "label missing": Fault("missing-file", "error", "_seg.nii.gz: does not exist", removed("seg")),
    "image empty": Fault("empty-file", "error", "_t1.nii.gz: is empty (zero bytes)", change_bytes("t1", lambda b: b"")),
    "label empty file": Fault("empty-file", "error", "_seg.nii.gz: is empty", change_bytes("seg", lambda b: b"")),
    "image cut off": Fault("truncated", "error", "_t1.nii.gz: is cut short", change_bytes("t1", lambda b: b[:-900])),
    "label cut off": Fault("truncated", "error", "_seg.nii.gz: is cut short", change_bytes("seg", lambda b: b[:-9])),
    "fewer voxels than message": Fault(
        "truncated",
        "error",
        "too short for its shape",
        change_bytes("t2", lambda b: gzip.compress(gzip.decompress(b)[:-500])),
    ),
    "a bit flipped": Fault("damaged", "error", "_t1.nii.gz: is cut short or damaged", change_bytes("t1", bit_flipped)),
    "text": Fault(
        "wrong-format", "error", "is not a gzip file", change_bytes("t1", lambda b: b"hello, I am no scan" * 40)
    ),
    "packed text": Fault(
        "wrong-format", "error", "is not a NIfTI file", change_bytes("t1", lambda b: gzip.compress(b"hello" * 200))
    ),
    "folder": Fault("unreadable", "error", "_t1.nii.gz: cannot be read", directory),
    "two axes": Fault("not-3d", "error", "is not a 3-D volume (shape 24x28)", save("t1", scan(78)["t1"][..., 0])),
    "complex": Fault("wrong-type", "error", "complex64", save("t1", scan(78)["t1"].astype("c8"))),
    "singular affine": Fault("bad-affine", "error", "affine", singular),
    "one modality": Fault("missing-modality", "error", "1 volumes for 2", lambda r, c: replace(c, images=c.images[:1])),
    "three files": Fault(
        "too-many-volumes",
        "error",
        "3 volumes for 2",
        third_file,
    ),
    "label 4-D": Fault(
        "too-many-volumes", "error", "label holds 2 volumes", save("seg", np.stack([scan(78)["seg"]] * 2, -1))
    ),
    # geometry
    "modality of another shape": Fault(
        "shape-differs", "error", "23x28x20 against 24x28x20", rewrite("t2", lambda a: a[1:])
    ),
    "label of another shape": Fault(
        "shape-differs", "error", "24x27x20 against 24x28x20", rewrite("seg", lambda a: a[:, 1:])
    ),
    "modality turned": Fault("orientation-differs", "error", "orientation LPS against RAS", turned("t2", "LPS")),
    "label turned": Fault("orientation-differs", "error", "(shape 28x24x20 against 24x28x20)", turned("seg", "ARS")),
    "label flipped": Fault("orientation-differs", "error", "LAS against RAS", rewrite("seg", affine=affine(a00=-2))),
    "modality finer": Fault(
        "spacing-differs", "error", "1 x 2 x 2.5 mm against 2 x 2 x 2.5", rewrite("t2", affine=affine(a00=1))
    ),
    "label coarser": Fault(
        "spacing-differs", "error", "(shape 12x28x20", rewrite("seg", lambda a: a[::2], affine=affine(a00=4))
    ),
    "label shifted": Fault("affine-differs", "error", "lies 3 mm away", rewrite("seg", affine=affine(a03=-21))),
    "modality shifted a little": Fault(
        "affine-differs", "warning", "lies 0.1 mm away", rewrite("t2", affine=affine(a03=-23.9))
    ),
    "sheared": Fault("not-orthogonal", "error", "not at right angles", rewrite("all", affine=affine(a01=0.4))),
    "sheared a little": Fault("not-orthogonal", "warning", "off by", rewrite("all", affine=affine(a01=0.01))),
    "two affines": Fault("sform-qform-differ", "warning", "20 mm apart", two_affines),
    "metres": Fault("absurd-spacing", "error", "voxels of 0.002 x 0.002", rewrite("all", affine=AFFINE * 1e-3)),
    "micrometres": Fault("absurd-spacing", "error", "voxels of 2e+03", rewrite("all", affine=AFFINE * 1e3)),
    "dwarf": Fault("absurd-extent", "warning", "1.44 x 1.68 x 1.5 mm", rewrite("all", affine=AFFINE * 0.03)),
    "single slice": Fault("single-slice", "warning", "24x28x1", rewrite("all", lambda a: a[..., 10:11])),
    # values
    "NaN": Fault("not-finite", "error", "_t2.nii.gz holds NaN or infinite values (1 of", rewrite("t2", put(np.nan))),
    "infinity": Fault("not-finite", "error", "_t1.nii.gz holds NaN or infinite", rewrite("t1", put(-np.inf))),
    "constant": Fault("constant", "error", "every voxel is 7", rewrite("t2", lambda a: np.full_like(a, 7))),
    "noise": Fault("unlike-cohort", "warning", "T2 is unlike", rewrite("t2", noise)),
    "metal": Fault("unlike-cohort", "warning", "T1 is unlike", rewrite("t1", metal)),
    "modalities swapped": Fault("modalities-swapped", "warning", "T1 and T2", swapped),
    # labels
    "value outside the schema": Fault("label-outside-schema", "error", "label values 2", rewrite("seg", put(2, "u1"))),
    "negative value": Fault("label-outside-schema", "error", "label values -1", rewrite("seg", put(-1, "i2"))),
    "not whole": Fault("label-not-whole", "error", "not whole numbers (0.5; in 1 voxels)", rewrite("seg", put(0.5))),
    "label with NaN": Fault("label-not-whole", "error", "(nan; in 1", rewrite("seg", put(np.nan))),
    "nothing labelled": Fault("empty-label", "warning", "background only", rewrite("seg", np.zeros_like)),
    "all ignored": Fault("empty-label", "warning", "background only", rewrite("seg", lambda a: np.full_like(a, 9))),
    "label in the air": Fault("label-outside-body", "warning", "has 100% of its", rewrite("seg", moved)),
    # twice
    "same image": Fault(
        "same-content", "error", "T1 holds the same voxels as T1 of good_00", lambda r, c: copied(r, c, "t1")
    ),
    "same image, mirrored": Fault(
        "mirrored-content",
        "error",
        "of good_00, mirrored or rotated",
        lambda r, c: copied(r, c, "t1", "t2", mirrored=True),
    ),
    "same image in another split": Fault(
        "same-content",
        "error",
        "of good_00, another subject in the split train",
        copied_into_test,
    ),
    "same label": Fault("same-label", "warning", "identical to that of good_00", lambda r, c: copied(r, c, "seg")),
    "modality copied": Fault(
        "same-content",
        "warning",
        "T2 holds the same voxels as T1",
        lambda r, c: shutil.copy(path_of(r, c, "t1"), path_of(r, c, "t2")),
    ),
    # guesses of readers, and rounding errors
    "neither sform nor qform": Fault(
        "no-orientation",
        "warning",
        "which side is left is a guess (its axes were assumed to be LAS)",
        spoil_header(*NO_FORMS),
    ),
    "slice distance lost": Fault(
        "voxel-size-guessed",
        "warning",
        "has the voxel size 0 along axis 3",
        spoil_header(NO_FORMS[0], ("pixdim", 3, 0)),
    ),
    "slice distance contradicted": Fault(
        "pixdim-differs",
        "warning",
        "has voxels of 2 x 2 x 2.5 mm by its sform and of 2 x 2 x 5 mm by its pixdim",
        spoil_header(NO_FORMS[1], ("pixdim", 3, 5)),
    ),
    "qform not quite a rotation": Fault(
        "qform-not-rotation", "warning", "has length 1.001, not 1", spoil_header(NO_FORMS[0], ("quatern_d", (), 1.001))
    ),
    "qform no rotation": Fault(
        "bad-affine",
        "error",
        "affine that is not a rotation",
        spoil_header(NO_FORMS[0], ("quatern_d", (), 1.5), part="t2"),
    ),
    "sheared sform alone": Fault(
        "not-orthogonal", "warning", "and no qform", spoil_header(NO_FORMS[1], ("srow_x", 1, 0.001))
    ),
    "scaled coarsely": Fault(
        "label-rounded",
        "note",
        "holds values near whole numbers, such as 1.0039216",
        rewrite("seg", lambda a: np.where(a == 1, 64 * 4 / 255, a).astype("f4")),
    ),
    "almost a value outside the schema": Fault(
        "label-outside-schema",
        "error",
        "label values 1.9999999 are not in the schema",
        rewrite("seg", lambda a: np.where(a == 1, 1.9999999, a).astype("f4")),
    ),
    "not whole, nearly": Fault(
        "label-not-whole", "error", "not whole numbers (0.98; in 1 voxels)", rewrite("seg", put(0.98))
    ),
    # files once more
    "header and image apart": Fault(
        "wrong-format",
        "error",
        "is not a NIfTI file",
        change_bytes("t1", repacked(lambda b: b[:344] + b"ni1\0" + b[348:])),
    ),
    "more voxels than message": Fault(
        "damaged", "error", "holds more than its shape", change_bytes("t2", repacked(lambda b: b + bytes(2_000_000)))
    ),
    "a side below zero": Fault(
        "not-3d", "error", "is not a 3-D volume (shape 24x-28x20)", spoil_header(("dim", 2, -28), part="seg")
    ),
    "a scale that is none": Fault("damaged", "error", "_t1.nii.gz: is damaged", spoil_header(INFINITE, part="t1")),
    "five axes": Fault(
        "not-3d", "error", "(shape 24x28x20x1x2)", save("t1", np.stack([scan(78)["t1"]] * 2, -1)[..., None, :])
    ),
    "colours": Fault("wrong-type", "error", "not plain numbers", save("t2", np.zeros(SHAPE, RGB))),
    "pipe": Fault("unreadable", "error", "_t1.nii.gz: is not a file", in_place_of("t1", os.mkfifo)),
    "broken link": Fault(
        "missing-file",
        "error",
        "_t2.nii.gz: does not exist",
        in_place_of("t2", lambda path: path.symlink_to("nowhere")),
    ),
    "suffix in capitals": Fault(
        "missing-file", "error", "whose name differs only in capital letters", renamed("t1", lambda name: name.upper())
    ),
    "na\u00efve name": Fault(
        "missing-file",
        "error",
        "whose name differs only in how accents are written",
        renamed("seg", lambda name: unicodedata.normalize("NFD", name)),
    ),
    "MetaImage cut off": Fault(
        "truncated", "error", "_t1.mha: is too short", convert("t1", ".mha", lambda content: content[:-500])
    ),
    "NRRD of another kind": Fault(
        "damaged",
        "error",
        "stores its voxels in an encoding",
        convert("t2", ".nrrd", replacing("encoding: raw", "encoding: hex")),
    ),
    # geometry once more
    "NRRD without axes": Fault(
        "no-orientation",
        "warning",
        "which side is left is a guess",
        convert("t1", ".nrrd", replacing("space: left-posterior-superior", "space dimension: 3"), "t2", "seg"),
    ),
    "label turned by 20 degrees": Fault("affine-differs", "error", "mm away", rewrite("seg", affine=turn(20) @ AFFINE)),
    "micrometres as millimetres": Fault(
        "absurd-spacing", "error", "voxels of 0.002 x 0.002", spoil_header(("xyzt_units", (), 3))
    ),
    # values once more
    "nothing but air": Fault("constant", "error", "every voxel is 0", rewrite("t1", np.zeros_like)),
    "label in place of an image": Fault("unlike-cohort", "warning", "T2 is unlike", instead("t2", "seg")),
    "image in place of a label": Fault("label-outside-schema", "error", "are not in the schema", instead("seg", "t1")),
    "infinite label": Fault("label-not-whole", "error", "(inf; in 1", rewrite("seg", put(np.inf))),
    "smoothed label": Fault(
        "label-not-whole",
        "error",
        "not whole numbers (0.",
        rewrite("seg", lambda a: ndimage.gaussian_filter(a.astype("f4"), 1)),
    ),
    "label beyond a byte": Fault("label-outside-schema", "error", "label values 260", rewrite("seg", put(260, "i2"))),
    "all labelled as outside the schema": Fault(
        "label-outside-schema",
        "error",
        "label values 255",
        rewrite("seg", lambda a: np.where(a > 0, 255, 0).astype("u1")),
    ),
    "same image, turned": Fault("mirrored-content", "error", "of good_00, mirrored or rotated", turned_copy),
    "image of another subject's label": Fault(
        "same-label", "warning", "identical to that of good_01", label_of_good_01
    ),
}


def plant(root: Path, name: str, fault: Fault, seed: int) -> Case:
    case = write_case(root, name, seed)
    changed = fault.plant(root, case)
    return changed if isinstance(changed, Case) else case


def only(report: Report) -> Finding:
    """The one finding of a report."""
    (finding,) = report.findings
    return finding
