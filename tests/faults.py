"""A small good cohort of two modalities, and faults to plant in one of its cases."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
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
    """A head in air with tissue, fluid and a lesion; T2 has inverted contrast."""
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
    """A fault: `plant` changes the files of a case below a root, and may return a changed Case."""

    code: str
    severity: str
    words: str
    plant: Callable[[Path, Case], object]


Change = Callable[[NDArray], NDArray]


def rewrite(
    part: str, change: Change = lambda array: array, affine: NDArray = AFFINE
) -> Callable[[Path, Case], object]:
    def plant(root: Path, case: Case) -> None:
        for each in PARTS if part == "all" else (part,):
            path = path_of(root, case, each)
            write_volume(path, change(read_volume(path).array), affine)

    return plant


def change_bytes(part: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Case], object]:
    return lambda root, case: path_of(root, case, part).write_bytes(change(path_of(root, case, part).read_bytes()))


def put(value: float, dtype: str = "f4") -> Change:
    def change(array: NDArray) -> NDArray:
        changed = array.astype(dtype)
        changed[12, 14, 10] = value
        return changed

    return change


def affine(**changes: float) -> NDArray:
    affine = AFFINE.copy()
    for key, value in changes.items():
        affine[int(key[1]), int(key[2])] = value
    return affine


def save(part: str, array: NDArray, affine: NDArray = AFFINE) -> Callable[[Path, Case], object]:
    return lambda root, case: nib.save(nib.Nifti1Image(array, affine), path_of(root, case, part))


def turned(part: str, codes: str) -> Callable[[Path, Case], object]:
    """The same patient, stored along other axes."""

    def plant(root: Path, case: Case) -> None:
        image = nib.load(path_of(root, case, part))
        target = nib.orientations.axcodes2ornt(codes)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
        write_volume(path_of(root, case, part), np.asarray(turned.dataobj), turned.affine)

    return plant


def directory(root: Path, case: Case) -> None:
    path_of(root, case, "t1").unlink()
    path_of(root, case, "t1").mkdir()


def singular(root: Path, case: Case) -> None:
    image = nib.Nifti1Image(scan(0)["t2"], AFFINE)
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    header["srow_x"], header["sform_code"], header["qform_code"] = 0, 1, 0
    content[: header.sizeof_hdr] = header.binaryblock
    path_of(root, case, "t2").write_bytes(gzip.compress(bytes(content)))


def two_affines(root: Path, case: Case) -> None:
    path = path_of(root, case, "t1")
    image = nib.Nifti1Image(read_volume(path).array, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(affine(a03=-4), 1)
    nib.save(image, path)


NO_FORMS = (("sform_code", (), 0), ("qform_code", (), 0))


def spoil_header(*changes: tuple[str, Any, float], part: str = "all") -> Callable[[Path, Case], object]:
    """Change fields of a NIfTI header, each given as (name, index within the field, value); the voxels stay."""

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


def swapped(root: Path, case: Case) -> Case:
    return replace(case, images=case.images[::-1])


def copied(root: Path, case: Case, *parts: str, mirrored: bool = False) -> None:
    for part in parts:
        volume = read_volume(root / f"good_00_{part}.nii.gz")
        array = volume.array[::-1] if mirrored else volume.array
        write_volume(path_of(root, case, part), array.astype("f4"), AFFINE)


def copied_into_test(root: Path, case: Case) -> Case:
    copied(root, case, "t2")
    return replace(case, split="test")


def third_file(root: Path, case: Case) -> Case:
    write_volume(root / "third.nii.gz", scan(77)["t1"], AFFINE)
    return replace(case, images=(*case.images, "third.nii.gz"))


def removed(part: str) -> Callable[[Path, Case], object]:
    return lambda root, case: path_of(root, case, part).unlink()


def noise(array: NDArray) -> NDArray:
    return np.random.default_rng(5).normal(500, 100, array.shape).astype("i2")


def metal(array: NDArray) -> NDArray:
    metal = array.copy()
    metal[9:15, 9:15, 7:13] = 30000
    return metal


def moved(array: NDArray) -> NDArray:
    moved = np.zeros_like(array)
    moved[:2, :2, :2] = 1
    moved[2:4, :2, :2] = 4
    return moved


def bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


INFINITE = ("scl_inter", (), np.inf)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def repacked(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(change(gzip.decompress(content)))


def in_place_of(part: str, make: Callable[[Path], object]) -> Callable[[Path, Case], object]:
    def plant(root: Path, case: Case) -> None:
        path_of(root, case, part).unlink()
        make(path_of(root, case, part))

    return plant


def renamed(part: str, change: Callable[[str], str]) -> Callable[[Path, Case], object]:
    """Rename the file without changing the case."""

    def plant(root: Path, case: Case) -> None:
        path = path_of(root, case, part)
        path.rename(path.with_name(change(path.name)))

    return plant


def convert(part: str, suffix: str, change: Callable[[bytes], bytes], *more: str) -> Callable[[Path, Case], object]:
    """Write files in another format, each with a fault."""

    def plant(root: Path, case: Case) -> Case:
        files = {each: path_of(root, case, each).name for each in PARTS}
        for each in (part, *more):
            image = sitk.ReadImage(str(path_of(root, case, each)))
            files[each] = f"{case.name}_{each}{suffix}"
            sitk.WriteImage(image, str(root / files[each]), False)
            (root / files[each]).write_bytes(change((root / files[each]).read_bytes()))
        return replace(case, images=(files["t1"], files["t2"]), label=files["seg"])

    return plant


def replacing(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return change


def turn(degrees: float) -> NDArray:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle := np.radians(degrees)), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def instead(part: str, of: str) -> Callable[[Path, Case], object]:
    return lambda root, case: shutil.copy(path_of(root, case, of), path_of(root, case, part))


def turned_copy(root: Path, case: Case) -> None:
    volume = read_volume(root / "good_00_t1.nii.gz").array
    write_volume(path_of(root, case, "t1"), volume[::-1, ::-1].astype("f4"), AFFINE)


def label_of_good_01(root: Path, case: Case) -> None:
    shutil.copy(root / "good_01_seg.nii.gz", path_of(root, case, "seg"))


def one_by_one(function: Callable, items: Iterable, description: str, workers: int = 0) -> Iterator:
    """In place of `isolated`: in this process, because worker processes take seconds to start."""
    return map(function, items)
