"""Folder layouts in common use, read into a Manifest with every case in the split "train".

Files are paired by name, never by their position in two sorted lists. A layout uses the label names of its publisher;
label values are never guessed from the files. All problems of a folder are collected in one pass. Hidden files are
skipped, and a note lists every file that looks like an image but is not used.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from medaug.cohort.manifest import Manifest
from medaug.errors import UserError
from medaug.inputs import opened, read_json
from medaug.layouts.common import Layout, LayoutFormat, image_files, unused_files
from medaug.layouts.rules import NO_RULES, Rules
from medaug.tables import Table

__all__ = ["LAYOUTS", "PHANTOM_MARK", "Layout", "detect_layout", "read_cohort", "read_layout"]

logger = logging.getLogger(__name__)

PHANTOM_MARK = "PHANTOM.txt"  # written by medaug.phantoms.head beside its cases

LAYOUTS: Table[LayoutFormat] = Table("layouts", "layout", LayoutFormat)


def detect_layout(root: str | os.PathLike[str], rules: Rules = NO_RULES) -> str:
    """Return the layout that a folder follows: a key of LAYOUTS, or "dicom" (see `medaug.dicom`).

    If the rules name modalities, they decide: globs mean "pairs", DICOM tags mean "dicom".

    Raises:
        UserError: there is no such folder, no layout matches, or more than one does.
    """
    root = _folder(root)
    if rules.modalities:
        return "pairs" if all(isinstance(rule, str) for rule in rules.modalities.values()) else "dicom"
    if (root / "dataset.json").is_file():  # it decides, because it may list files of any name
        data = read_json(root / "dataset.json")
        found = [name for name, entry in LAYOUTS.items() if entry.has_dataset is not None and entry.has_dataset(data)]
        if found:
            return found[-1]  # nnU-Net comes after MSD, and its file may have MSD's keys as well
    files = image_files(root)
    found = [name for name, entry in LAYOUTS.items() if entry.has_files is not None and entry.has_files(files)]
    if len(found) == 2 and (confused := LAYOUTS[found[0]].confused_with) is not None and confused[0] == found[1]:
        raise UserError(
            confused[1], f"name layout={found[0]} or layout={found[1]} (medaug.train: data.layout=...)", path=root
        )
    if len(found) > 1:
        raise UserError(
            f"has files in the layouts {' and '.join(found)}", "separate them, or name one layout", path=root
        )
    if found:
        return found[0]
    if _holds_dicom(root):
        return "dicom"
    known = ", ".join([*LAYOUTS, "dicom"])
    unread = [finding.what for finding in unused_files(root, (), "its name fits no layout")]
    images = f" ({len(unread)} files look like images; {unread[0]})" if unread else ""
    raise UserError(
        f"follows none of the layouts {known}{images}",
        "check root, or say which files are images and labels, as in "
        "ingest images='images/*.nii.gz' labels='labels/*.nii.gz' classes=[background,NAME]",
        path=root,
    )


def read_layout(root: str | os.PathLike[str], layout: str = "auto", rules: Rules = NO_RULES) -> Layout:
    """Read a folder; cases sorted by name, all in the split "train".

    Args:
        root: folder of the data; nothing is written to it.
        layout: a key of LAYOUTS, or "auto" to detect it.
        rules: the user's rules; their `labels` replace those of any layout.

    Returns:
        The layout; its manifest has `phantom` set if the folder contains the marker file of a phantom cohort.

    Raises:
        UserError: as for `detect_layout` and the reader of the layout; or the layout is unknown, or does not use one
            of the rules. Problems of single cases are in the result's `problems` instead.
    """
    root = _folder(root)
    if layout == "auto":
        layout = detect_layout(root, rules)
        logger.info("%s: layout %s detected", root, layout)
    if layout == "dicom":
        # The message leaves out the path: a folder of DICOM may have a patient's name.
        raise UserError(
            "root: holds DICOM, which must be converted first", "run python -m medaug.ingest root=DIR out=FILE.json"
        )
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout}: no such layout", f"choose auto, {', '.join(LAYOUTS)} or dicom")
    entry = LAYOUTS[layout]
    for key in ("structures", "modalities", "label", "case"):
        if key not in entry.rule_keys and getattr(rules, key):
            raise UserError(
                f"layout {layout} does not use {key}", "remove it, or name another layout", path=rules.source
            )
    result = entry.read(root, rules)
    # Phantoms must never be mistaken for patients, in any layout.
    manifest = replace(result.manifest, phantom=(root / PHANTOM_MARK).is_file())
    claimed = {os.path.normpath(os.path.join(manifest.root, file)) for file in result.claimed}
    unused = unused_files(root, claimed, entry.unused)
    if not any(finding.severity == "error" for finding in result.problems):
        manifest.validate(str(root))
    return replace(result, manifest=manifest, problems=(*result.problems, *unused))


def _folder(root: str | os.PathLike[str]) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.is_dir():
        raise UserError("no such folder", "check root", path=path)
    return path


def _holds_dicom(root: Path) -> bool:
    """Whether any file below `root` ends in .dcm, or has DICOM's magic bytes after a preamble of 128 bytes."""
    for folder, _, files in os.walk(root):
        for name in sorted(files):
            if name.lower().endswith(".dcm"):
                return True
            with contextlib.suppress(UserError), opened(Path(folder, name)) as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def read_cohort(path: str | os.PathLike[str], layout: str = "auto") -> Manifest:
    """Read a cohort: a manifest, or a folder in a known layout.

    Args:
        path: a manifest or MSD dataset.json, or a folder.
        layout: the layout of a folder; "auto" detects it.

    Raises:
        UserError: the file is not a manifest, or the folder is not in a known layout or has errors.
    """
    return read_layout(path, layout).valid_manifest() if Path(path).is_dir() else Manifest.load(path)
