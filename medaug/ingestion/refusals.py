"""Refuses to overwrite files in medaug.ingest; this runs first, so the module imports little."""

from __future__ import annotations

import json
from pathlib import Path

from medaug.errors import UserError


def refuse_existing(out: Path) -> None:
    """Refuse to write a manifest over another file."""
    if out.exists():
        raise UserError(f"out={out}: {out} exists already", "remove it or give another name")


def check_report(path: Path, out: Path) -> None:
    """Refuse to write the report over anything but an earlier report."""
    if path.resolve() == out.resolve():
        raise UserError(f"report={path}: is the manifest's name too", "give another one")
    if path.exists():
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not {"findings", "cases"} <= content.keys():
            raise UserError(f"report={path}: exists and is not a report of medaug.ingest", "give another name")
