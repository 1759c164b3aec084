"""The input of all export formats, and the work that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE
from medaug.errors import UserError
from medaug.files import atomic_write, put_folder, temporary_folder, write_json
from medaug.imaging.cases import read_doubt, read_indices
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volumes
from medaug.imaging.volume import Header, Volume, grid_difference, is_finite
from medaug.layouts import PHANTOM_MARK
from medaug.marking.mark import PHANTOM_NOTE, mark_dataset, mark_file, sidecar, synthetic_note
from medaug.marking.signing import Signer
from medaug.progress import track

log = logging.getLogger(__name__)


def _silent() -> None:
    pass


@dataclass(frozen=True)
class Export:
    """A cohort to write for another tool.

    Attributes:
        manifest: the cohort.
        out: the folder to write, which must not exist yet; it appears only when it is complete.
        records: provenance of the synthetic cases by name; all other cases are real scans or phantoms.
        seen: subjects that the generator of the synthetic cases was trained on.
        segmentation: kind of DICOM SEG; only for DICOM.
        suffixes: suffixes of modalities, as MODALITY:SUFFIX; only for BIDS.
        skull_stripped: whether the images are skull-stripped, which BIDS requires to say.
        confidence: whether voxels that confidence maps doubt are ignored, in the format that can say so.
        signer: signs the marks of synthetic files; None: the marks are not signed.
        announce: called after all files have been written, just before the folder gets its final name.
    """

    manifest: Manifest
    out: Path
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    segmentation: str = "BINARY"
    suffixes: Sequence[str] = ()
    skull_stripped: bool = False
    confidence: bool = True
    signer: Signer | None = None
    announce: Callable[[], None] = _silent

    def note(self, case: Case) -> str:
        """The note for the headers of a case, without the cohort's name, which might identify a patient."""
        if case.name in self.records:
            return synthetic_note(self.records[case.name], self.manifest.phantom)
        return PHANTOM_NOTE if self.manifest.phantom else "medaug export"

    def mark(self, case: Case, path: Path, **beside: Any) -> None:
        """Write a JSON file beside a NIfTI file, with its mark if the case is synthetic, and with the keys `beside`."""
        if case.name in self.records:
            mark_file(path, self.records[case.name], self.manifest.phantom, self.signer, **beside)
        elif beside:
            write_json(sidecar(path), beside)

    def mark_dicom(self, case: Case, dataset: Dataset) -> None:
        """Add the mark to a DICOM dataset if the case is synthetic; call it just before the dataset is saved."""
        if case.name in self.records:
            mark_dataset(dataset, self.records[case.name], self.manifest.phantom, self.signer)

    def write(self, case: Case, path: Path, array: NDArray[Any], affine: NDArray[np.float64], **beside: Any) -> None:
        """Write an array (X, Y, Z) of a case as NIfTI, with its note and its mark; `beside` as for `mark`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        write_volume(path, array, affine, self.note(case))
        self.mark(case, path, **beside)

    def fill(
        self,
        write_case: Callable[[Case, Path], None],
        files: Callable[[list[Case]], Mapping[str, Any]],
    ) -> None:
        """Write a temporary folder beside `out`, and rename it to `out` when it is complete.

        Training and validation cases without a label are left out, with a warning.

        Args:
            write_case: writes the files of one case below a folder.
            files: returns the content of further files by name, given the cases that were written. Text is written
                unchanged, everything else as JSON.

        Raises:
            UserError: `out` exists, there is no labelled training or validation case, or the name of a case cannot be a
                file name.
        """
        manifest, out = self.manifest, self.out
        cases = [case for case in manifest.cases if case.label is not None or case.split == "test"]
        if not any(case.split != "test" for case in cases):
            raise UserError(f"{manifest.name}: no labelled case for training", "add one: the layout requires it")
        for case in cases:
            if Path(case.name).name != case.name or case.name.startswith("."):
                raise UserError(
                    f"{manifest.name}: the case name {case.name} cannot be a file name", "rename it in the manifest"
                )
        if out.exists():
            raise UserError(f"out={out}: already exists", "choose a folder that does not")
        if left := len(manifest.cases) - len(cases):
            log.warning("%d training or validation cases have no label and are left out", left)
        with temporary_folder(out) as unfinished:
            for case in track(cases, "exporting"):
                write_case(case, unfinished)
            for name, content in files(cases).items():
                _write(unfinished / name, content)
            if manifest.phantom:
                _write(unfinished / PHANTOM_MARK, f"{manifest.name}: computer-made phantoms, not patients\n")
            self.announce()
            put_folder(unfinished, out)

    def images(self, case: Case) -> tuple[list[NDArray[Any]], Header]:
        """Return the modalities of a case, each (X, Y, Z) in its own type, and the grid of the first one.

        Formats write every volume of a case with the affine of its first image, so that affines that differ only by
        rounding become equal.

        Raises:
            UserError: a file cannot be read, is on another grid, or has NaN or infinite values; or there are more or
                fewer volumes than modalities.
        """
        volumes = [(path, volume) for path in self.manifest.image_paths(case) for volume in read_volumes(path)]
        path, first = volumes[0]
        if len(volumes) != len(self.manifest.modalities):
            wanted = len(self.manifest.modalities)
            raise UserError(
                f"case {case.name} has {len(volumes)} volumes for {wanted} modalities",
                "correct the manifest",
                path=path,
            )
        for path, volume in volumes:
            _check_grid(path, first.header, volume)
            if not is_finite(volume.array):
                raise UserError("holds NaN or infinite values", "replace them, or leave the case out", path=path)
        return [volume.array.astype(volume.storage) for _, volume in volumes], first.header

    def indices(self, case: Case, first: Header) -> NDArray[np.uint8]:
        """Return the label of a case as class indices (X, Y, Z) on the grid of its first image.

        Raises:
            UserError: the file cannot be read, is on another grid, or has values that are not in the schema.
        """
        indices = read_indices(self.manifest, case, first)
        assert indices is not None
        return indices

    def trusted(self, case: Case, first: Header) -> NDArray[np.uint8]:
        """As `indices`, with the voxels that the confidence map of the case doubts ignored, if that is wanted.

        Raises:
            UserError: as for `indices` and `read_doubt`.
        """
        indices = self.indices(case, first)
        doubt = read_doubt(self.manifest, case, first) if self.confidence else None
        return indices if doubt is None else np.where(doubt == 1, np.uint8(IGNORE), indices)


@runtime_checkable
class ExportFormat(Protocol):
    """An entry of the table of export formats: writes a cohort in the layout of another tool."""

    def __call__(self, export: Export) -> None:
        """Write the folder `export.out`.

        Raises:
            UserError: the cohort cannot be read, the format cannot hold it, or the folder cannot be written.
        """


def training_part(case: Case) -> str:
    """Return the ending of folder names in MSD and nnU-Net: Ts for test cases, Tr for training and validation cases."""
    return "Ts" if case.split == "test" else "Tr"


def _check_grid(path: Path, first: Header, volume: Volume) -> None:
    if difference := grid_difference(first, volume.header):
        raise UserError(f"{difference} of the case's first image", "resample it onto that grid", path=path)


def _write(path: Path, content: Any) -> None:
    if not isinstance(content, str):
        return write_json(path, content)
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
