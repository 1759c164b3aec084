"""Converts a planned DICOM tree to NIfTI files under pseudonyms.

The process may be killed at any point, because of this order: scans are written to a temporary folder beside `out`; the
private file is written before any message uses its pseudonyms; `Ingested.keep` renames the folder; the caller writes
the manifest last. So a manifest never lists a missing file, and the private file explains every pseudonym in use.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.dicom.findings import files_of
from medaug.dicom.headers import scan_tree
from medaug.dicom.instance import quiet
from medaug.dicom.labels import list_structures
from medaug.dicom.masks import NamedMask, combine
from medaug.dicom.privacy import (
    Name,
    Private,
    identifying_terms,
    load_private,
    name_studies,
    private_path,
    save_private,
)
from medaug.dicom.rtstruct import read_rtstruct
from medaug.dicom.seg import read_seg
from medaug.dicom.series import is_image, read_series
from medaug.dicom.stack import right_angled
from medaug.dicom.tree import Plan, PlannedCase, plan_cohort
from medaug.errors import UserError
from medaug.files import put_folder, same_files, temporary_folder
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_label
from medaug.imaging.volume import LPS_TO_RAS, RIGHT_ANGLE, Header, Volume, grid_difference, shear
from medaug.isolation import Failure, isolated
from medaug.layouts.rules import Rules
from medaug.locks import exclusive
from medaug.options import IngestOptions

_MASKS: dict[str, Callable[[Path, Header, Collection[str]], list[NamedMask]]] = {
    "SEG": read_seg,
    "RTSTRUCT": read_rtstruct,
}


@dataclass(frozen=True)
class Ingested:
    """A converted tree in its temporary folder, to be checked, and then kept or discarded.

    Attributes:
        manifest: its root is the temporary folder; every case is in the split "train".
        findings: problems of the tree; the private file lists the files that they are about.
        folder: the final folder of the scans if they are kept.
    """

    manifest: Manifest
    findings: tuple[Finding, ...]
    folder: Path

    def keep(self) -> Manifest:
        """Rename the folder, and return the manifest with its final root, to be saved immediately.

        An existing folder with the same scans is kept: an ingest that was killed before it wrote the manifest leaves
        one.

        Raises:
            UserError: as for `put_folder`, or an existing folder holds other scans.
        """
        if not self.folder.exists():
            put_folder(Path(self.manifest.root), self.folder)
        elif not same_files(Path(self.manifest.root), self.folder):
            raise UserError(
                "holds scans that differ from those converted now", "remove it, or choose another out", path=self.folder
            )
        else:
            shutil.rmtree(self.manifest.root)  # before the manifest exists: after that no ingest would clean up here
        return replace(self.manifest, root=str(self.folder))


@contextlib.contextmanager
def ingest_dicom(
    root: str | os.PathLike[str], rules: Rules, schema: LabelSchema | None, options: IngestOptions, out: Path
) -> Iterator[Ingested]:
    """Convert a DICOM tree to NIfTI in a folder beside the manifest `out` (`cohort.json`: `cohort/`).

    Inside the `with` block the caller checks `manifest`. To keep the scans it calls `keep` and saves the manifest that
    this returns; otherwise only the private file remains, which explains the findings.

    Args:
        root: folder of the tree; nothing is written into it.
        rules: which series is which modality, which file is a label, which segment is which class.
        schema: schema of the labels; None if the rules do not define it.
        options: name, exclude, on_gap, on_grid, pseudonyms, private, workers.
        out: the manifest to be written.

    Raises:
        UserError: the rules do not fit the tree, the folder exists or is inside root, another process is writing
            there, a private file is damaged, or the disk is full.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    folder = out.with_suffix("")
    private_file = private_path(out, options.private).absolute()
    for path in (folder, private_file):
        if path.resolve().is_relative_to(root.resolve()):
            raise UserError("out: is inside root, where nothing may be written", "give a path outside of it")
    with exclusive(out), exclusive(private_file):
        if os.path.lexists(folder) and not _holds_only_scans(folder):
            raise UserError(
                "exists already, but the scans are to be written there", "remove it, or choose another out", path=folder
            )
        with _converted(root, rules, schema, options, folder, private_file) as ingested:
            yield ingested


def _holds_only_scans(folder: Path) -> bool:
    """Whether a folder may come from an ingest that was killed before it wrote its manifest (see `Ingested.keep`)."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
    return bool(names) and all(re.fullmatch(r"(images|labels)/[^/]+\.nii\.gz", name) for name in names)


@contextlib.contextmanager
def _converted(
    root: Path, rules: Rules, schema: LabelSchema | None, options: IngestOptions, folder: Path, private_file: Path
) -> Iterator[Ingested]:
    """Convert the tree into a temporary folder and write the private file; the caller holds the locks of both."""
    private = load_private(private_file)
    tree = scan_tree(root, options.workers)
    if not tree.series and not tree.unreadable:
        raise UserError(f"root: none of its {tree.ignored} files is DICOM", "check the path")
    if schema is None:
        names = list_structures(tree) if rules.modalities else ""
        if names or rules.label is not None:
            found = f"the tree holds segments: {names}" if names else f"label is {rules.label}"
            raise UserError(
                f"no labels, but {found}",
                "give labels (value: class), and structures (class: pattern for names of segments)",
                path=rules.source,
            )
        schema = LabelSchema(((0, "background"),))
    # Images come last and win, because segmentation tools often write another PatientID, or none.
    patients = {series.study_uid: series.patient_id for series in sorted(tree.series, key=is_image)}
    studies = name_studies(patients, private, options.pseudonyms)
    if unknown := set(options.exclude) - {name.case for name in studies.values()}:
        raise UserError(f"exclude: {', '.join(sorted(unknown))}: no such case", "use the names in the findings")
    plan = plan_cohort(tree, rules, schema, studies, root, options.on_gap, options.on_grid)
    plan = replace(
        plan,
        cases=tuple(case for case in plan.cases if case.name.case not in options.exclude),
        findings=tuple(finding for finding in plan.findings if finding.case not in options.exclude),
    )

    with temporary_folder(folder) as temporary:
        manifest, failed = convert(plan, temporary, options.workers, options.name or folder.name)
        save_private(private_file, _updated(private, plan, studies, patients, {**plan.files, **failed}))
        yield Ingested(manifest, (*plan.findings, *failed), folder)


def convert(
    plan: Plan, folder: Path, workers: int = 0, name: str = "cohort"
) -> tuple[Manifest, dict[Finding, tuple[Path, ...]]]:
    """Write the cases of a plan as NIfTI: `images/<case>_<modality>.nii.gz`, `labels/<case>.nii.gz`.

    Args:
        plan: the result of `plan_cohort`.
        folder: target folder; created if it does not exist.
        workers: processes, as for `isolated`.
        name: name of the cohort.

    Returns:
        The manifest of the cases that could be converted, and the findings, each with the files that it is about.

    Raises:
        UserError: two modalities would share a file name, or the disk is full.
    """
    suffixes = [re.sub(r"[^A-Za-z0-9.-]+", "-", modality) for modality in plan.modalities]
    if len({suffix.casefold() for suffix in suffixes}) < len(suffixes):
        raise UserError(f"modalities {', '.join(plan.modalities)}: two would have the same file name", "rename one")
    folder.mkdir(parents=True, exist_ok=True)
    shared = replace(plan, cases=(), findings=(), files={})  # the part that every worker needs
    results = isolated(partial(convert_case, shared, suffixes, folder), plan.cases, "DICOM to NIfTI", workers)
    cases: list[Case] = []
    problems: dict[Finding, tuple[Path, ...]] = {}
    for planned, result in zip(plan.cases, results, strict=True):
        if isinstance(result, Failure):
            remedy = "the private file lists its files: correct them, or leave the study out"
            what = f"cannot be converted ({result.reason})"
            result = None, [Finding(planned.name.case, "error", "dicom-crash", what, remedy)]
        case, findings = result
        cases += [case] if case is not None else []
        problems |= {finding: _sources(planned) for finding in findings}
    return Manifest(name, "", plan.modalities, plan.schema, tuple(cases), str(folder)), problems


def convert_case(
    plan: Plan, suffixes: Sequence[str], folder: Path, planned: PlannedCase
) -> tuple[Case | None, list[Finding]]:
    """Read one case and write its files below `folder`; the case is None if there was an error."""
    name = planned.name.case
    findings: list[Finding] = []
    with quiet():
        volumes = _read_images(plan, planned, findings)
        label = _read_label(plan, planned, volumes[0].header, findings) if len(volumes) == len(suffixes) else None
    if any(finding.severity == "error" for finding in findings):
        return None, findings
    grid = volumes[0].affine  # for all files: the affines agree within the tolerance, those of the files then exactly
    if shear(grid).max() > RIGHT_ANGLE:
        grid = right_angled(grid, volumes[0].header.shape)
    images = [f"images/{name}_{suffix}.nii.gz" for suffix in suffixes]
    for file, volume in zip(images, volumes, strict=True):
        write_volume(folder / file, volume.array.astype(volume.storage), grid)
    if label is None:
        return Case(name, tuple(images), None, planned.name.subject), findings
    write_volume(folder / f"labels/{name}.nii.gz", plan.schema.to_values(label), grid)
    return Case(name, tuple(images), f"labels/{name}.nii.gz", planned.name.subject), findings


def _read_images(plan: Plan, planned: PlannedCase, findings: list[Finding]) -> list[Volume]:
    """Return the modalities that can be read, all on the grid of the first; adds problems to `findings`."""
    name, volumes = planned.name.case, list[Volume]()
    for modality, series in zip(plan.modalities, planned.series, strict=True):
        try:
            volume = read_series(series, plan.on_gap)
        except UserError as error:
            findings.append(_without_source(name, "dicom-series", error))
            continue
        volumes.append(volume)
        first = volumes[0]
        titles = f"{modality} ({series.title})", f"{plan.modalities[0]} ({planned.series[0].title})"
        difference = grid_difference(first.header, volume.header)
        if difference and plan.on_grid == "refuse":
            remedy = "set on_grid=resample, or choose series with equal grids by the rules"
            what = f"{titles[0]} {difference} of {titles[1]}"
            findings.append(Finding(name, "error", "dicom-grid", what, remedy))
            continue
        if series.frame_of_reference != planned.series[0].frame_of_reference:
            what = f"{titles[0]} has another frame of reference than {titles[1]}"
            remedy = "check that the scans are aligned; if not, register them first"
            findings.append(Finding(name, "warning", "dicom-frame", what, remedy))
        if difference:
            volumes[-1] = resample(volume, first.header)
    return volumes


def _read_label(plan: Plan, planned: PlannedCase, grid: Header, findings: list[Finding]) -> NDArray[np.uint8] | None:
    """Return class indices (X, Y, Z) on the grid, or None; adds problems to `findings`."""
    name = planned.name.case
    if not planned.labels:
        return None
    source = " and ".join(label.title for label in planned.labels)
    try:
        if planned.labels[0].kind == "file":
            volume = _reordered(read_label(planned.labels[0].path), grid)
            if difference := grid_difference(grid, volume.header):
                what = f"{source} {difference} of {plan.modalities[0]} ({planned.series[0].title})"
                remedy = "resample it onto that series"
                findings.append(Finding(name, "error", "dicom-label-grid", what, remedy))
                return None
            return plan.schema.to_indices(volume.array)
        indices, notes = combine(_read_masks(planned, grid), plan.structures, plan.schema)
    except UserError as error:
        findings.append(_without_source(name, "dicom-label", error.within(source)))
        return None
    remedy = "nothing to do if that is intended; otherwise correct structures in the rules"
    findings += [Finding(name, "note", "dicom-label-names", note, remedy) for note in notes]
    return indices


def _without_source(case: str, code: str, error: UserError) -> Finding:
    """Turn an error into a finding without its path and its quoted detail, because both may name a patient."""
    return Finding(case, "error", code, error.what, error.remedy)


def _read_masks(planned: PlannedCase, grid: Header) -> list[NamedMask]:
    """Read the segments and ROIs of all label objects of a case."""
    paths = [*(series.instances[0].path for series in planned.series), *(label.path for label in planned.labels)]
    terms = identifying_terms(paths)
    return [mask for label in planned.labels for mask in _MASKS[label.kind](label.path, grid, terms)]


def resample(volume: Volume, grid: Header) -> Volume:
    """Resample a volume to another grid by cubic B-splines; voxels outside of it get its smallest value.

    Overshoot is clipped and integers are rounded, so that units and range of the values do not change.
    """
    filter_ = sitk.ResampleImageFilter()
    origin, step, direction = _geometry(grid.affine)
    filter_.SetSize(grid.shape)
    filter_.SetOutputOrigin(origin)
    filter_.SetOutputSpacing(step)
    filter_.SetOutputDirection(direction)
    filter_.SetInterpolator(sitk.sitkBSpline)
    filter_.SetDefaultPixelValue(float(volume.array.min()))
    image = sitk.GetImageFromArray(volume.array.astype(np.float64).T)
    origin, step, direction = _geometry(volume.affine)
    image.SetOrigin(origin)
    image.SetSpacing(step)
    image.SetDirection(direction)
    values = sitk.GetArrayFromImage(filter_.Execute(image)).T.clip(volume.array.min(), volume.array.max())
    if volume.array.dtype.kind in "iu":
        values = np.rint(values)
    return Volume(values.astype(volume.array.dtype), grid.affine, volume.dtype)


def _geometry(affine: NDArray[np.float64]) -> tuple[list[float], list[float], list[float]]:
    """Convert an affine (4, 4) in RAS to ITK's origin, spacing and direction in LPS."""
    lps = LPS_TO_RAS @ affine
    step = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3].tolist(), step.tolist(), (lps[:3, :3] / step).ravel().tolist()


def _reordered(volume: Volume, grid: Header) -> Volume:
    """Swap and flip a volume's axes to match those of the grid, because other tools write other orders."""
    orientation = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.io_orientation(grid.affine)
    )
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.array.shape)
    return Volume(nib.orientations.apply_orientation(volume.array, orientation), affine, volume.dtype)


def _sources(planned: PlannedCase) -> tuple[Path, ...]:
    return (*files_of(planned.series), *(label.path for label in planned.labels))


def _updated(
    private: Private,
    plan: Plan,
    studies: Mapping[str, Name],
    patients: Mapping[str, str],
    problems: Mapping[Finding, tuple[Path, ...]],
) -> Private:
    """Add this tree to the content of the private file; subjects and cases of other trees are kept."""
    return Private(
        salt=private.salt,
        subjects=private.subjects | {name.subject: patients[study] or study for study, name in studies.items()},
        cases=private.cases
        | {
            case.name.case: {
                "subject": case.name.subject,
                "study": case.study,
                "series": {m: series.uid for m, series in zip(plan.modalities, case.series, strict=True)},
                "files": [str(path) for path in _sources(case)],
            }
            for case in plan.cases
        },
        problems=[{**f.to_mapping(), "files": [str(path) for path in files]} for f, files in problems.items()],
    )
