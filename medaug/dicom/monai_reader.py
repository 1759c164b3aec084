"""medaug's readers as a MONAI reader: `LoadImaged(keys, reader=MedaugReader)` in any pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from numpy.typing import NDArray

from medaug.dicom.instance import SEGMENTATIONS, Record, read_headers
from medaug.dicom.seg import read_seg_volume
from medaug.dicom.series import read_folder
from medaug.errors import UserError
from medaug.imaging.reading import read_volumes, suffix_of
from medaug.imaging.volume import Volume, grid_difference

Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]


class MedaugReader(ImageReader):
    """Reads NIfTI, MetaImage, NRRD, a DICOM folder of one series, a multi-frame DICOM file and DICOM SEG.

    Arrays are (X, Y, Z), or (X, Y, Z, M) for a file of M volumes or M files on one grid; the affine is RAS mm. A SEG
    gives segment numbers on its own grid.
    """

    def verify_suffix(self, filename: Paths) -> bool:
        """Whether each path is a folder, has the suffix of a supported format, or is a DICOM file."""
        return all(
            path.is_dir() or bool(suffix_of(path.name)) or isinstance(read_headers([path])[0], Record)
            for path in map(Path, ensure_tuple(filename))
        )

    def read(self, data: Paths, **kwargs: Any) -> tuple[Path, ...]:
        """Only return the paths; `get_data` reads the files.

        After an error in this method, `LoadImage` would try MONAI's own readers, which silently read a series with a
        missing slice or with two acquisitions as a wrong volume. An error in `get_data` reaches the user.
        """
        return tuple(map(Path, ensure_tuple(data)))

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read the files that `read` returned.

        Returns:
            The array, and metadata like those of MONAI's NibabelReader.

        Raises:
            UserError: a file or series cannot be read or is refused, or the files have different grids.
        """
        volumes = [(path, volume) for path in img for volume in _volumes(path)]
        first_path, first = volumes[0]
        for path, volume in volumes[1:]:
            if difference := grid_difference(first.header, volume.header):
                raise UserError(f"{difference} of {first_path.name}", "resample the files to one grid", path=path)
        arrays = [volume.array for _, volume in volumes]
        return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1), {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(first.array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if len(arrays) == 1 else -1,  # NaN means none in MONAI
        }


def _volumes(path: Path) -> list[Volume]:
    if suffix_of(path.name):
        return read_volumes(path)
    if path.is_file():
        header = read_headers([path])[0]
        if isinstance(header, Record) and header.instance.sop_class.startswith(SEGMENTATIONS):
            try:
                return [read_seg_volume(path)]
            except UserError as error:
                raise UserError(error.what, error.remedy, code=error.code, path=path) from None
    return [read_folder(path)]
