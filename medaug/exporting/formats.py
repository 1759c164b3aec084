"""The table of export formats."""

from __future__ import annotations

from medaug.exporting.msd import write_msd
from medaug.exporting.nnunet import write_nnunet
from medaug.exporting.request import ExportFormat
from medaug.tables import Table

WRITERS = Table(
    "export_formats", "export format", ExportFormat, {"msd": write_msd, "nnunet": write_nnunet}, key="export.format"
)
