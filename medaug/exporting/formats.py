"""The table of export formats."""

from __future__ import annotations

from medaug.exporting.request import ExportFormat
from medaug.tables import Table

WRITERS: Table[ExportFormat] = Table("export_formats", "export format", ExportFormat, key="export.format")
