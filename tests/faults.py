"""A small good cohort of two modalities, and everything that can be wrong with one of its cases."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volume

SHAPE = (24, 28, 20)
AFFINE = np.array([[2.0, 0, 0, -24], [0, 2, 0, -30], [0, 0, 2.5, -20], [0, 0, 0, 1]])
SCHEMA = LabelSchema(((0, "background"), (1, "core"), (4, "rim")), ignore=9)
PARTS = ("t1", "t2", "seg")


def scan(seed: int) -> dict[str, NDArray]:
    """A head in air with tissue and fluid, bright and dark the other way round in T2, and a lesion inside."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    radius = rng.uniform(0.75, 0.9, 3)
    head = sum((axis / r) ** 2 for axis, r in zip(axes, radius, strict=True)) < 1
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    fluid = head & (field > np.quantile(field[head], 0.75))
    shading = 1 + ndimage.gaussian_filter(rng.normal(size=SHAPE), 4)
    gain = rng.uniform(0.5, 2)
    images = {}
    for part, tissue, water in (("t1", 800, 200), ("t2", 350, 1000)):
        signal = np.where(fluid, water, tissue * shading) * head
        blurred = ndimage.gaussian_filter(signal, 0.6)
        images[part] = np.rint(gain * np.hypot(blurred + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE))).astype(
            "i2"
        )
    centre = np.array(SHAPE) / 2 + rng.uniform(-2, 2, 3)
    distance = np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T
    images["seg"] = np.select([distance < 2.2, distance < 3.6], [1, 4], 0).astype(np.uint8)
    return images


def path_of(root: Path, case: Case, part: str) -> Path:
    return root / f"{case.name}_{part}.nii.gz"


def write_case(root: Path, name: str, seed: int, split: str = "train") -> Case:
    case = Case(name, (f"{name}_t1.nii.gz", f"{name}_t2.nii.gz"), f"{name}_seg.nii.gz", f"person {name}", split)
    for part, array in scan(seed).items():
        write_volume(path_of(root, case, part), array, AFFINE)
    return case


def write_good_cohort(root: Path, num: int = 12) -> Manifest:
    cases = tuple(write_case(root, f"good_{index:02d}", index) for index in range(num))
    return Manifest("planted", "", ("T1", "T2"), SCHEMA, cases, str(root))


class Fault(NamedTuple):
    """`plant` changes the files of a case below a root, and may return another Case."""

    code: str
    severity: str
    words: str
    plant: Callable[[Path, Case], object]


Change = Callable[[NDArray], NDArray]


def _rewrite(
    part: str, change: Change = lambda array: array, affine: NDArray = AFFINE
) -> Callable[[Path, Case], object]:
    def plant(root: Path, case: Case) -> None:
        for each in PARTS if part == "all" else (part,):
            path = path_of(root, case, each)
            write_volume(path, change(read_volume(path).array), affine)

    return plant


def _bytes(part: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Case], object]:
    return lambda root, case: path_of(root, case, part).write_bytes(change(path_of(root, case, part).read_bytes()))


def _put(value: float, dtype: str = "f4") -> Change:
    def change(array: NDArray) -> NDArray:
        changed = array.astype(dtype)
        changed[12, 14, 10] = value
        return changed

    return change


def _affine(**changes: float) -> NDArray:
    affine = AFFINE.copy()
    for key, value in changes.items():
        affine[int(key[1]), int(key[2])] = value
    return affine


def _save(part: str, array: NDArray, affine: NDArray = AFFINE) -> Callable[[Path, Case], object]:
    return lambda root, case: nib.save(nib.Nifti1Image(array, affine), path_of(root, case, part))


def _turned(part: str, codes: str) -> Callable[[Path, Case], object]:
    """The same patient, stored along other axes."""

    def plant(root: Path, case: Case) -> None:
        image = nib.load(path_of(root, case, part))
        target = nib.orientations.axcodes2ornt(codes)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
        write_volume(path_of(root, case, part), np.asarray(turned.dataobj), turned.affine)

    return plant


def _directory(root: Path, case: Case) -> None:
    path_of(root, case, "t1").unlink()
    path_of(root, case, "t1").mkdir()


def _singular(root: Path, case: Case) -> None:
    image = nib.Nifti1Image(scan(0)["t2"], AFFINE)
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    header["srow_x"], header["sform_code"], header["qform_code"] = 0, 1, 0
    content[: header.sizeof_hdr] = header.binaryblock
    path_of(root, case, "t2").write_bytes(gzip.compress(bytes(content)))


def _two_affines(root: Path, case: Case) -> None:
    path = path_of(root, case, "t1")
    image = nib.Nifti1Image(read_volume(path).array, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(_affine(a03=-4), 1)
    nib.save(image, path)


NO_FORMS = (("sform_code", (), 0), ("qform_code", (), 0))


def spoil_header(*changes: tuple[str, Any, float], part: str = "all") -> Callable[[Path, Case], object]:
    """Fields of a NIfTI header spoilt, each (name, place within the field, value); the voxels stay."""

    def plant(root: Path, case: Case) -> None:
        for each in PARTS if part == "all" else (part,):
            path = path_of(root, case, each)
            content = bytearray(gzip.decompress(path.read_bytes()))
            header = nib.Nifti1Header(bytes(content[:348]))
            for field, place, value in changes:
                header.structarr[field][place] = value
            content[:348] = header.binaryblock
            path.write_bytes(gzip.compress(bytes(content)))

    return plant


def _swapped(root: Path, case: Case) -> Case:
    return replace(case, images=case.images[::-1])


def _copied(root: Path, case: Case, *parts: str, mirrored: bool = False) -> None:
    for part in parts:
        volume = read_volume(root / f"good_00_{part}.nii.gz")
        array = volume.array[::-1] if mirrored else volume.array
        write_volume(path_of(root, case, part), array.astype("f4"), AFFINE)


def _copied_into_test(root: Path, case: Case) -> Case:
    _copied(root, case, "t2")
    return replace(case, split="test")


def _third_file(root: Path, case: Case) -> Case:
    write_volume(root / "third.nii.gz", scan(77)["t1"], AFFINE)
    return replace(case, images=(*case.images, "third.nii.gz"))


def _removed(part: str) -> Callable[[Path, Case], object]:
    return lambda root, case: path_of(root, case, part).unlink()


def _noise(array: NDArray) -> NDArray:
    return np.random.default_rng(5).normal(500, 100, array.shape).astype("i2")


def _metal(array: NDArray) -> NDArray:
    metal = array.copy()
    metal[9:15, 9:15, 7:13] = 30000
    return metal


def _moved(array: NDArray) -> NDArray:
    moved = np.zeros_like(array)
    moved[:2, :2, :2] = 1
    moved[2:4, :2, :2] = 4
    return moved


def _bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


FAULTS: dict[str, Fault] = {
    # files
    "image missing": Fault("missing-file", "error", "_t2.nii.gz: does not exist", _removed("t2")),
    "label missing": Fault("missing-file", "error", "_seg.nii.gz: does not exist", _removed("seg")),
    "image empty": Fault("empty-file", "error", "_t1.nii.gz: is empty (zero bytes)", _bytes("t1", lambda b: b"")),
    "label empty file": Fault("empty-file", "error", "_seg.nii.gz: is empty", _bytes("seg", lambda b: b"")),
    "image cut off": Fault("truncated", "error", "_t1.nii.gz: is cut short", _bytes("t1", lambda b: b[:-900])),
    "label cut off": Fault("truncated", "error", "_seg.nii.gz: is cut short", _bytes("seg", lambda b: b[:-9])),
    "fewer voxels than said": Fault(
        "truncated",
        "error",
        "too short for its shape",
        _bytes("t2", lambda b: gzip.compress(gzip.decompress(b)[:-500])),
    ),
    "a bit flipped": Fault("damaged", "error", "_t1.nii.gz: is cut short or damaged", _bytes("t1", _bit_flipped)),
    "text": Fault("wrong-format", "error", "Not a gzipped file", _bytes("t1", lambda b: b"hello, I am no scan" * 40)),
    "packed text": Fault(
        "wrong-format", "error", "is not a NIfTI file", _bytes("t1", lambda b: gzip.compress(b"hello" * 200))
    ),
    "folder": Fault("unreadable", "error", "_t1.nii.gz: cannot be read", _directory),
    "two axes": Fault("not-3d", "error", "is not a 3-D volume (shape 24x28)", _save("t1", scan(78)["t1"][..., 0])),
    "complex": Fault("wrong-type", "error", "complex64", _save("t1", scan(78)["t1"].astype("c8"))),
    "singular affine": Fault("bad-affine", "error", "affine", _singular),
    "one modality": Fault("missing-modality", "error", "1 volumes for 2", lambda r, c: replace(c, images=c.images[:1])),
    "three files": Fault(
        "too-many-volumes",
        "error",
        "3 volumes for 2",
        _third_file,
    ),
    "label 4-D": Fault(
        "too-many-volumes", "error", "label holds 2 volumes", _save("seg", np.stack([scan(78)["seg"]] * 2, -1))
    ),
    # geometry
    "modality of another shape": Fault(
        "shape-differs", "error", "23x28x20 against 24x28x20", _rewrite("t2", lambda a: a[1:])
    ),
    "label of another shape": Fault(
        "shape-differs", "error", "24x27x20 against 24x28x20", _rewrite("seg", lambda a: a[:, 1:])
    ),
    "modality turned": Fault("orientation-differs", "error", "orientation LPS against RAS", _turned("t2", "LPS")),
    "label turned": Fault("orientation-differs", "error", "(shape 28x24x20 against 24x28x20)", _turned("seg", "ARS")),
    "label flipped": Fault("orientation-differs", "error", "LAS against RAS", _rewrite("seg", affine=_affine(a00=-2))),
    "modality finer": Fault(
        "spacing-differs", "error", "1 x 2 x 2.5 mm against 2 x 2 x 2.5", _rewrite("t2", affine=_affine(a00=1))
    ),
    "label coarser": Fault(
        "spacing-differs", "error", "(shape 12x28x20", _rewrite("seg", lambda a: a[::2], affine=_affine(a00=4))
    ),
    "label shifted": Fault("affine-differs", "error", "lies 3 mm away", _rewrite("seg", affine=_affine(a03=-21))),
    "modality shifted a little": Fault(
        "affine-differs", "warning", "lies 0.1 mm away", _rewrite("t2", affine=_affine(a03=-23.9))
    ),
    "sheared": Fault("not-orthogonal", "error", "not at right angles", _rewrite("all", affine=_affine(a01=0.4))),
    "sheared a little": Fault("not-orthogonal", "warning", "off by", _rewrite("all", affine=_affine(a01=0.01))),
    "two affines": Fault("sform-qform-differ", "warning", "20 mm apart", _two_affines),
    "metres": Fault("absurd-spacing", "error", "voxels of 0.002 x 0.002", _rewrite("all", affine=AFFINE * 1e-3)),
    "micrometres": Fault("absurd-spacing", "error", "voxels of 2e+03", _rewrite("all", affine=AFFINE * 1e3)),
    "dwarf": Fault("absurd-extent", "warning", "1.44 x 1.68 x 1.5 mm", _rewrite("all", affine=AFFINE * 0.03)),
    "single slice": Fault("single-slice", "warning", "24x28x1", _rewrite("all", lambda a: a[..., 10:11])),
    # values
    "NaN": Fault("not-finite", "error", "_t2.nii.gz holds NaN or infinite values (1 of", _rewrite("t2", _put(np.nan))),
    "infinity": Fault("not-finite", "error", "_t1.nii.gz holds NaN or infinite", _rewrite("t1", _put(-np.inf))),
    "constant": Fault("constant", "error", "every voxel is 7", _rewrite("t2", lambda a: np.full_like(a, 7))),
    "noise": Fault("unlike-cohort", "warning", "T2 is unlike", _rewrite("t2", _noise)),
    "metal": Fault("unlike-cohort", "warning", "T1 is unlike", _rewrite("t1", _metal)),
    "modalities swapped": Fault("modalities-swapped", "warning", "T1 and T2", _swapped),
    # labels
    "value outside the schema": Fault(
        "label-outside-schema", "error", "label values 2", _rewrite("seg", _put(2, "u1"))
    ),
    "negative value": Fault("label-outside-schema", "error", "label values -1", _rewrite("seg", _put(-1, "i2"))),
    "not whole": Fault("label-not-whole", "error", "not whole numbers (0.5; in 1 voxels)", _rewrite("seg", _put(0.5))),
    "label with NaN": Fault("label-not-whole", "error", "(nan; in 1", _rewrite("seg", _put(np.nan))),
    "nothing labelled": Fault("empty-label", "warning", "background only", _rewrite("seg", np.zeros_like)),
    "all ignored": Fault("empty-label", "warning", "background only", _rewrite("seg", lambda a: np.full_like(a, 9))),
    "label in the air": Fault("label-outside-body", "warning", "for 100% of its", _rewrite("seg", _moved)),
    # twice
    "same image": Fault(
        "same-content", "error", "T1 holds the same voxels as T1 of good_00", lambda r, c: _copied(r, c, "t1")
    ),
    "same image, mirrored": Fault(
        "mirrored-content",
        "error",
        "of good_00, mirrored or turned",
        lambda r, c: _copied(r, c, "t1", "t2", mirrored=True),
    ),
    "same image in another split": Fault(
        "same-content",
        "error",
        "of good_00, another subject in the split train",
        _copied_into_test,
    ),
    "same label": Fault("same-label", "warning", "voxel by voxel that of good_00", lambda r, c: _copied(r, c, "seg")),
    "modality copied": Fault(
        "same-content",
        "warning",
        "T2 holds the same voxels as T1",
        lambda r, c: shutil.copy(path_of(r, c, "t1"), path_of(r, c, "t2")),
    ),
    # what a reader has to guess, and what rounding leaves
    "neither sform nor qform": Fault(
        "no-orientation",
        "warning",
        "which side is left is a guess (its axes were taken to be LAS)",
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
        "qform-not-rotation", "warning", "1.001 long, not 1", spoil_header(NO_FORMS[0], ("quatern_d", (), 1.001))
    ),
    "qform no rotation": Fault(
        "bad-affine",
        "error",
        "affine that is no rotation",
        spoil_header(NO_FORMS[0], ("quatern_d", (), 1.5), part="t2"),
    ),
    "sheared sform alone": Fault(
        "not-orthogonal", "warning", "and no qform", spoil_header(NO_FORMS[1], ("srow_x", 1, 0.001))
    ),
    "scaled coarsely": Fault(
        "label-rounded",
        "note",
        "holds 1.0039216 and the like for whole numbers",
        _rewrite("seg", lambda a: np.where(a == 1, 64 * 4 / 255, a).astype("f4")),
    ),
    "almost a value outside the schema": Fault(
        "label-outside-schema",
        "error",
        "label values 1.9999999 are not in the schema",
        _rewrite("seg", lambda a: np.where(a == 1, 1.9999999, a).astype("f4")),
    ),
    "not whole, nearly": Fault(
        "label-not-whole", "error", "not whole numbers (0.98; in 1 voxels)", _rewrite("seg", _put(0.98))
    ),
}


def plant(root: Path, name: str, fault: Fault, seed: int) -> Case:
    case = write_case(root, name, seed)
    changed = fault.plant(root, case)
    return changed if isinstance(changed, Case) else case
