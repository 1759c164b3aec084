"""A cohort of phantom heads with tumours, to try every stage without patient data.

The anatomy is the MNI152 average brain, as tissue maps in nilearn's wheel (Fonov et al., "Unbiased average
age-appropriate brain templates from birth to adulthood", NeuroImage 47, 2009). For each phantom it is deformed by an
affine and a smooth elastic map, its sulci and ventricles are widened, one tumour grows in its white matter, and it is
then "scanned": four modalities, each with its own tissue contrasts, coil shading (bias field), in-plane blur and Rician
noise. The template is skull-stripped, so phantoms are as well: the background is exactly 0, as in BraTS.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volume
from medaug.inputs import read_text
from medaug.phantoms.tumour import ENHANCING, NECROSIS, OEDEMA, TumourSize, grow_tumour
from medaug.progress import track

Floats = NDArray[np.floating]
Shape = tuple[int, int, int]

PHANTOM_NOTICE = (
    "These volumes are computer-made phantoms (a deformed average brain with simulated tumours), "
    "not patients: scores on them say that the software works, nothing about its worth on real scans."
)
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")

_FIELD_OF_VIEW = np.array([184.0, 216.0, 184.0])  # mm; contains the largest rotated, scaled and shifted brain
_CENTRE = np.array([0.0, -16.5, 5.5])  # mm, MNI; middle of the template brain
_TEMPLATE_ORIGIN = np.array([-98.0, -134.0, -72.0])  # mm, MNI; first voxel of the 1 mm template

# Relative signal of each tissue, in the order of `_TISSUES`; varied by up to 6% for each subject.
_TISSUES = ("grey", "white", "fluid", "necrosis", "enhancing", "oedema")
_CONTRAST = {
    "T1": (0.56, 0.88, 0.20, 0.34, 0.54, 0.58),
    "T1ce": (0.53, 0.80, 0.20, 0.32, 1.15, 0.54),
    "T2": (0.60, 0.42, 1.10, 0.95, 0.66, 0.86),
    "FLAIR": (0.62, 0.49, 0.16, 0.50, 0.76, 1.00),
}


@dataclass(frozen=True)
class PhantomSubject:
    """One phantom: `images` by modality and `label`, all (X, Y, Z) on one grid.

    Attributes:
        images: "T1", "T1ce", "T2", "FLAIR" -> int16, 0..4000 in arbitrary units, 0 outside the brain.
        label: uint8 in BraTS values: 0 background, 1 necrotic core, 2 oedema, 4 enhancing tumour.
        affine: (4, 4), voxel index to RAS+ mm.
    """

    images: dict[str, NDArray[np.int16]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_subject(seed: int, index: int, shape: Shape) -> PhantomSubject:
    """Compute phantom number `index` of cohort `seed`; the result depends only on (seed, index, shape).

    Its anatomy is sampled on lattices in millimetres, so that the same (seed, index) gives nearly the same head at
    every shape. Voxels are isotropic unless the sides require spacings that differ by more than half.

    Args:
        seed: 0 or more.
        index: 0 or more.
        shape: sides of 32 to 160 voxels.
    """
    rng = np.random.default_rng([seed, index])
    spacing = _spacing(shape)
    axes = [(np.arange(side) - (side - 1) / 2) * step for side, step in zip(shape, spacing, strict=True)]

    position = _deformed_positions(rng, axes)
    grey, white, fluid = _tissues_at(position, tuple(spacing))
    brain = grey + white + fluid > 0.5
    # Widen sulci and ventricles by an amount that varies in space: the average brain has few open sulci.
    fluid = fluid * np.exp(rng.uniform(0.2, 1.2) + 0.7 * smooth_field(rng, axes, 14.0))
    total = np.maximum(grey + white + fluid, 1e-6)
    grey, white, fluid = (np.where(brain, tissue / total, 0) for tissue in (grey, white, fluid))

    candidates = _tumour_sites()
    site = candidates[rng.integers(len(candidates))]
    nearest = np.where(brain, sum((p - s) ** 2 for p, s in zip(position, site, strict=True)), np.inf).argmin()
    x, y, z = (int(i) for i in np.unravel_index(nearest, shape))
    core = np.exp(rng.uniform(np.log(3), np.log(40)))
    # The volume of a shell around a ball of the core's volume, at least one voxel thick.
    thickness = max(rng.uniform(3, 7), spacing.max()) / np.cbrt(core * 1000 * 3 / (4 * np.pi))
    size = TumourSize(core, core * ((1 + thickness) ** 3 - 1), np.exp(rng.uniform(np.log(10), np.log(80))))
    label = grow_tumour(white, fluid, brain, (x, y, z), spacing, smooth_field(rng, axes, 16.0), size)

    # Blur the classes slightly, to give their borders the partial volume that the other tissues have.
    classes = [
        ndimage.gaussian_filter((label == value).astype(np.float32), 0.45) for value in (NECROSIS, ENHANCING, OEDEMA)
    ]
    classes[2] *= rng.uniform(0.75, 0.95)  # oedema is infiltrated tissue, not a tissue of its own
    healthy = 1 - sum(classes)
    tissues = np.stack([grey * healthy, white * healthy, fluid * healthy, *classes])
    texture = 1 + np.where(label > 0, 0.10, 0.02) * smooth_field(rng, axes, 9.0)

    images = {name: _scan(rng, name, tissues, texture, brain, axes, spacing) for name in MODALITIES}
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = _CENTRE + [axis[0] for axis in axes]
    return PhantomSubject(images, label, affine)


def write_cohort(out: Path, num_subjects: int, shape: Shape, seed: int) -> None:
    """Write phantoms as NIfTI in the BraTS 2020 layout: `out/Phantom_000/Phantom_000_flair.nii.gz` and so on.

    Existing subjects are kept, so an interrupted call can be repeated, and a cohort can be extended. `PHANTOM.txt`
    describes the content of the folder.

    Raises:
        UserError: `out` holds a cohort of another seed or shape, or a larger one; or the disk is full.
    """
    note = f"{PHANTOM_NOTICE}\nseed {seed}, {shape[0]}x{shape[1]}x{shape[2]} voxels\n"
    note_path = out / "PHANTOM.txt"
    if note_path.exists() and read_text(note_path) != note:
        raise UserError(
            "the folder holds phantoms of another seed or shape", "delete it or choose another", path=note_path
        )
    found = len(list(out.glob("Phantom_*")))
    if found and not note_path.exists():
        raise UserError(
            f"holds Phantom_* but no {note_path.name}, so it is not ours to add to", "choose another", path=out
        )
    if found > num_subjects:
        raise UserError(
            f"holds {found} phantoms, but {num_subjects} were requested", "delete it or choose another", path=out
        )
    with atomic_write(note_path) as temporary:
        temporary.write_text(note)
    for index in track(range(num_subjects), "phantom cohort"):
        name = f"Phantom_{index:03d}"
        path = {part: out / name / f"{name}_{part.lower()}.nii.gz" for part in (*MODALITIES, "seg")}
        if all(file.exists() for file in path.values()):
            continue
        subject = make_subject(seed, index, shape)
        for modality, image in subject.images.items():
            write_volume(path[modality], image, subject.affine, "medaug phantom, not a patient")
        write_volume(path["seg"], subject.label, subject.affine, "medaug phantom, not a patient")


def smooth_field(rng: np.random.Generator, axes: list[Floats], wavelength: float) -> Floats:
    """Sample a random smooth field of mean 0 and variance about 1 on the grid spanned by `axes` (mm), float32.

    It is a tensor-product cubic B-spline with independent normal coefficients on a lattice of step `wavelength` mm
    over the field of view (the free-form deformation of Rueckert et al., IEEE TMI 18, 1999). The coefficients do not
    depend on the grid, so the field is the same at every resolution.
    """
    counts = np.ceil(_FIELD_OF_VIEW / wavelength).astype(int) + 4
    field = rng.standard_normal(counts)
    for axis, count in zip(axes, counts, strict=True):
        distance = np.abs(axis[:, None] / wavelength - (np.arange(count) - (count - 1) / 2))
        basis = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)
        field = np.tensordot(field, basis, axes=(0, 1))  # contracts the first axis and appends the new one
    # 151/315 is the integral of the squared spline: averaging multiplies the variance by it along each axis.
    return (field / (151 / 315) ** 1.5).astype(np.float32)


def add_rician_noise(signal: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    """Return the magnitude of `signal` with independent normal noise of deviation `sigma` in both channels.

    M = sqrt((S + n1)^2 + n2^2) (Gudbjartsson and Patz, MRM 34, 1995): E[M^2] = S^2 + 2 sigma^2.
    """
    real, imaginary = rng.normal(0.0, sigma, (2, *signal.shape))
    return np.asarray(np.hypot(signal + real, imaginary))


def _spacing(shape: Shape) -> Floats:
    """Return the voxel size in mm at which a grid of `shape` covers the head."""
    spacing = _FIELD_OF_VIEW / shape
    return np.full(3, spacing.max()) if spacing.max() <= 1.5 * spacing.min() else spacing


def _deformed_positions(rng: np.random.Generator, axes: list[Floats]) -> list[Floats]:
    """Return the template position (mm, MNI) of each voxel: x, y, z, each (X, Y, Z)."""
    scale = rng.uniform(0.95, 1.05) * rng.uniform(0.97, 1.03, 3)  # within 8 %
    rotation = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    shift = rng.uniform(-3, 3, 3)
    matrix = rotation / scale  # template coordinates shrink where the head grows
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    warps = [2.2 * smooth_field(rng, axes, 45.0) + 1.2 * smooth_field(rng, axes, 22.0) for _ in range(3)]
    return [
        sum(factor * part for factor, part in zip(row, grid, strict=True)) + centre + offset + warp
        for row, centre, offset, warp in zip(matrix, _CENTRE, shift, warps, strict=True)
    ]


def _tissues_at(position: list[Floats], spacing: tuple[float, ...]) -> Floats:
    """Return grey matter, white matter and fluid fractions (3, X, Y, Z) at template positions in mm."""
    maps, steps, origin = _blurred_template(spacing)
    index = [(p - o) / s for p, o, s in zip(position, origin, steps, strict=True)]
    return np.stack([ndimage.map_coordinates(tissue, index, order=1) for tissue in maps])


@lru_cache(maxsize=2)
def _blurred_template(spacing: tuple[float, ...]) -> tuple[Floats, Floats, Floats]:
    """Return tissue maps low-passed for voxels of `spacing` mm, their step and their first voxel's position, mm."""
    block = np.maximum(1, np.array(spacing) // 2).astype(int)
    maps = _template()
    sides = np.array(maps.shape[1:]) // block
    x, y, z = sides * block
    maps = maps[:, :x, :y, :z].reshape(3, *np.stack([sides, block], 1).ravel()).mean(axis=(2, 4, 6))
    sigma = 0.42 * np.array(spacing) / block  # ignores the blur of the block mean, which is small in comparison
    maps = np.stack([ndimage.gaussian_filter(tissue, sigma) for tissue in maps])
    return maps, block.astype(float), _TEMPLATE_ORIGIN + (block - 1) / 2


@lru_cache(maxsize=1)
def _template() -> Floats:
    """Grey matter, white matter and fluid fractions (3, 197, 233, 189) at 1 mm; sum 1 in the brain."""
    grey, white = _load_map("gm"), _load_map("wm")
    brain = _load_map("t1") > 0
    # Averaging over 152 heads blurs borders; cubing the fractions makes them as sharp as those of a single head.
    powers = np.stack([grey, white, np.maximum(1 - grey - white, 0)]) ** 3
    return np.asarray(powers / powers.sum(0) * brain)


def _load_map(name: str) -> Floats:
    """Load a template volume from nilearn's folder, 0..1, without importing nilearn, which would take seconds."""
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("nilearn")
    path = folder / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.exists():
        raise UserError("the MNI152 template is missing", "reinstall nilearn (pip install nilearn)", path=path)
    return read_volume(path).array.astype(np.float32) / 255


@lru_cache(maxsize=1)
def _tumour_sites() -> Floats:
    """Return template positions (N, 3) in mm where tumours may begin: deep cerebral white matter off the midline."""
    deep = ndimage.binary_erosion(_template()[1] > 0.9, iterations=3)
    sites = np.argwhere(deep)[::16] + _TEMPLATE_ORIGIN
    return np.asarray(sites[(np.abs(sites[:, 0]) > 14) & (sites[:, 2] > 0)])


def _scan(
    rng: np.random.Generator,
    modality: str,
    tissues: Floats,
    texture: Floats,
    brain: NDArray[np.bool_],
    axes: list[Floats],
    spacing: Floats,
) -> NDArray[np.int16]:
    """Simulate one modality: contrast, then shading, blur and noise, in the order of a real scan."""
    contrast = np.array(_CONTRAST[modality]) * rng.uniform(0.94, 1.06, len(_TISSUES))
    gain = rng.uniform(1400, 2200)
    shading = np.exp(0.06 * smooth_field(rng, axes, 90.0))
    blur = rng.uniform(0.3, 0.9) / spacing * [1, 1, 0]
    sigma = gain * rng.uniform(0.008, 0.025)
    signal = gain * np.tensordot(contrast, tissues, 1) * texture * shading
    noisy = add_rician_noise(ndimage.gaussian_filter(signal, blur), sigma, rng)
    return np.where(brain, np.clip(np.rint(noisy), 0, 4000), 0).astype(np.int16)
