"""Which folders medaug may replace: those with its marker, and in them only files that stages write."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from pathlib import Path
from typing import Any

from medaug.errors import UserError
from medaug.files import atomic_write, writing
from medaug.inputs import read_json
from medaug.tables import entry_names

MARKER = ".medaug-run"
_SAME_COMMAND = "remove it and run the same command again, which keeps the work that is done"
_TEXT = "A run folder of medaug. With overwrite=true its results may be replaced; other files are never touched.\n"
_RESULTS = (
    *("finished.json", "manifest.json", "provenance*.jsonl", "contact_sheet.png", ".scoring", ".tmp-????????-*-*"),
    *("last.ckpt", "best.ckpt", "codec.ckpt", "selector.pt", "validation.csv", "pictures"),
    *("imagesTr", "labelsTr", "confidenceTr", "strip.png", "strip.gif"),
    *("rejected", "screening.json", "screener.json", "screener*.pt", "README.md"),
    *("metrics.csv", "metrics.json"),
    *("judge.pt", "faithfulness.json", "faithfulness.csv", "measures.csv", "guidance.png"),
    *("jobs", "folds", "slurm", "scores.csv", "comparison.csv", "breakdown.csv", "summary.json", "primary.json"),
    *("report.html", "report.json", "checklists.csv", "external", "cases.png", "deformations", "pseudo_labels*"),
)
# Removed last, so that an interrupted removal can be repeated.
_KEPT = ("config.yaml", MARKER, ".lock*")


def mark(folder: Path) -> None:
    """Mark a folder as created by medaug."""
    if not is_marked(folder):
        with atomic_write(folder / MARKER) as temporary:
            temporary.write_text(_TEXT)


def is_marked(folder: Path) -> bool:
    """Whether `mark` was called for this folder."""
    return (folder / MARKER).is_file()


def empty(folder: Path) -> None:
    """Remove the results of a run from its folder, `finished.json` first and `config.yaml` last.

    Raises:
        UserError: the folder has no marker, or contains files that no stage wrote; then nothing is removed.
    """
    if not is_marked(folder):
        raise UserError(
            "was not made by medaug, so nothing in it is removed", "choose another with runs=DIR", path=folder
        )
    volumes = _volumes(folder)
    found = sorted(folder.iterdir(), key=lambda entry: (entry.name != "finished.json", entry.name))
    entries = [entry for entry in found if not _matches(entry.name, _KEPT)]
    ours = (*_RESULTS, *entry_names("loggers"))  # a logger writes to a folder with the name of its entry
    if foreign := [entry.name for entry in entries if not _matches(entry.name, ours) and entry.name not in volumes]:
        raise UserError(
            f"holds {', '.join(foreign[:3])}{' and others' if len(foreign) > 3 else ''}, which medaug did not write",
            "move it away and run the same command again. Nothing was removed",
            path=folder,
        )
    with writing(folder):
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (folder / "config.yaml").unlink()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _volumes(folder: Path) -> set[str]:
    """Return the names of predicted volumes from the provenance file, because they depend on the scans' names."""
    names: set[str] = set()
    path = folder / "provenance.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            names |= {str(name) for name in json.loads(line)["files"].values()}
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # a record of a synthetic pair, or a line cut short by a killed process
    return names


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if the run is unfinished or does not exist."""
    path = folder / "finished.json"
    if not os.path.lexists(path):
        return None
    summary = read_json(path, _SAME_COMMAND)
    if not isinstance(summary.get("results", {}), dict):
        raise UserError("its results are not a mapping from files to digests", _SAME_COMMAND, path=path)
    return summary
