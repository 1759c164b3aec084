"""Builder of DICOM SEG files for tests, by highdicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_files import uid
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes

NAMES = ("whole tumour", "core")


def write_seg(
    path: Path,
    series: Sequence[Path],
    masks: Sequence[np.ndarray],
    kind: str = "BINARY",
    names: Sequence[str] = NAMES,
    edit: Callable[[Segmentation], None] | None = None,
    **options: Any,
) -> Path:
    """A SEG by highdicom of masks (columns, rows, slices) in the order of the series' files."""
    images = [pydicom.dcmread(file) for file in series]
    pixels = np.stack([np.transpose(mask, (2, 1, 0)) for mask in masks], axis=-1)
    pixels = pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(masks) + 1, dtype=np.uint8)).max(axis=-1)
    segmentation = Segmentation(
        source_images=images,
        pixel_array=pixels.copy(),
        segmentation_type=kind,
        segment_descriptions=[
            SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
            for number, name in enumerate(names, 1)
        ],
        series_instance_uid=uid("seg"),
        series_number=99,
        sop_instance_uid=uid("seg instance"),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    if edit:
        edit(segmentation)
    segmentation.save_as(path)
    return path
