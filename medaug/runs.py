"""Run folders: which configuration a result belongs to, and whether it is whole.

A stage claims its folder, works, and finishes it. The same command again then resumes an unfinished run and
leaves a finished one alone, and two different configurations never mix in one folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from medaug.config import trained_preset
from medaug.errors import UserError
from medaug.files import atomic_write, file_sha256, write_json
from medaug.inputs import read_yaml
from medaug.locks import Lock, take
from medaug.options import Options
from medaug.ownership import empty, finished, is_marked, mark
from medaug.processes import process_count, process_rank
from medaug.stages import STAGES

logger = logging.getLogger(__name__)

_FOLDERS = {
    "train": "train",
    "generate": "synthetic",
    "predict": "predictions",
    "audit": "audit",
    "benchmark": "benchmark",
}
_MOST_DIFFERENCES = 5
_RECORDED_ONLY = ("preset",)  # in config.yaml for later stages, and no part of the identity: its keys are
_locks: dict[Path, Lock] = {}  # folders that this process holds


def stage_folder(options: Options, stage: str) -> Path:
    """Where a stage writes: `runs/<experiment>/{train,synthetic,predictions,audit,benchmark}`."""
    return Path(options.runs) / options.experiment / _FOLDERS[stage]


def command(stage: str, options: Options) -> str:
    """The command that runs a stage for the same experiment, preset and folder of results.

    Later stages take the preset from the training, so it is left out where the training has recorded it.
    """
    words, recorded = [f"experiment={options.experiment}"], None
    with contextlib.suppress(UserError):
        recorded = trained_preset(Path(options.runs), options.experiment)
    if not STAGES[stage].continues or recorded != options.preset:
        words.append(f"preset={options.preset}")
    if options.runs != Options.runs:
        words.append(f"runs={shlex.quote(options.runs)}")
    return f"python -m medaug.{stage} {' '.join(words)}"


def claim(
    folder: Path,
    identity: dict[str, Any],
    overwrite: bool,
    growable: tuple[str, ...] = (),
    recorded: tuple[str, ...] = (),
    keep: str = "move the folder elsewhere first to keep it",
) -> bool:
    """Take a run folder for a configuration, and hold it against other processes until `finish` or exit.

    Of several processes that work together the first writes and locks; the others come to the same answer.

    Args:
        folder: made if absent; `config.yaml` in it says whose it is.
        identity: the configuration that the result depends on, as plain containers.
        overwrite: remove the result of another configuration instead of refusing.
        growable: dotted keys that may differ while the work on disk is kept: more steps of one training.
        recorded: keys that runs of earlier versions do not have; such a run is still taken as finished, with a warning.
        keep: how a user keeps the result of another configuration; said beside `overwrite`.

    Returns:
        True: there is work to do, from the start or from where it stopped. False: this very run is finished.

    Raises:
        UserError: another configuration's result is there, the folder is no run's, another process holds it.
    """
    first = process_rank() == 0
    if first:
        lock(folder)
    try:
        work = _settle(folder, json.loads(json.dumps(identity)), overwrite, growable, recorded, keep, first)
    except BaseException:
        _unlock(folder)
        raise
    if not work:
        _unlock(folder)
    return work


def _settle(
    folder: Path,
    identity: dict[str, Any],
    overwrite: bool,
    growable: tuple[str, ...],
    recorded: tuple[str, ...],
    keep: str,
    first: bool,
) -> bool:
    former = _read_config(folder / "config.yaml")
    if former is None:
        if first:
            if folder.is_dir() and _results(folder):
                raise UserError("holds files of something else", "move them or choose runs=DIR", path=folder)
            _begin(folder, identity)
        return True
    differences = _differences(former, identity)
    unknown = [key for key in recorded if key in differences and key not in former]
    if unknown and not overwrite and finished(folder) is not None:
        logger.warning("%s: an earlier version did not record its %s, which cannot be checked", folder, unknown[0])
        differences = {key: pair for key, pair in differences.items() if key not in unknown}
    grows = bool(differences) and differences.keys() <= set(growable)
    if not is_marked(folder) and first:
        if differences and not grows:
            raise UserError(
                f"its config.yaml is not of this run ({_told(differences)}), and no marker says that medaug wrote it",
                "choose runs=DIR, or, if it is an earlier version's run that you no longer need, remove it",
                path=folder,
            )
        mark(folder)
    if differences and first:
        _refuse_company(folder)
    if differences and _results(folder) == {"config.yaml"}:
        if first:
            _write_config(folder / "config.yaml", identity)
        return True
    if not differences:
        done = finished(folder) is not None
        logger.info("%s: %s", folder, "finished already, nothing to do" if done else "unfinished, going on")
        return not done
    if grows:
        logger.info("%s: going on with %s", folder, _told(differences))
        if first:
            # In this order: whoever looks in between sees an unfinished run.
            (folder / "finished.json").unlink(missing_ok=True)
            _write_config(folder / "config.yaml", identity)
        return True
    if not overwrite:
        raise UserError(
            f"made with another configuration ({_told(differences)})",
            f"overwrite=true replaces it, {keep}",
            path=folder,
        )
    if first:
        empty(folder)
        _begin(folder, identity)
    logger.info("%s: replaced, %s", folder, _told(differences))
    return True


def _results(folder: Path) -> set[str]:
    """What lies in a folder, without hidden files."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    mark(folder)
    _write_config(folder / "config.yaml", identity)


def join(folder: Path, identity: dict[str, Any], patience: float = 600.0) -> None:
    """Of several processes that share work without speaking to each other: begin once the first has claimed the folder.

    Each but the first then holds a lock of its own, so that the folder is not given to another configuration while
    one of them is at work.

    Args:
        folder, identity: as for `claim`.
        patience: seconds to wait for the first.

    Raises:
        UserError: the first does not come, or another process of this number is at work there.
    """
    if process_rank() == 0:
        return
    wanted, end = json.loads(json.dumps(identity)), time.monotonic() + patience
    while (former := _read_config(folder / "config.yaml")) is None or _differences(former, wanted):
        if time.monotonic() > end:
            raise UserError(
                f"the first of {process_count()} processes has not begun", "start all of them again", path=folder
            )
        time.sleep(0.2)
    lock(folder)


def finish(folder: Path, summary: dict[str, Any], results: Iterable[Path] = ()) -> None:
    """Mark a run as whole with `finished.json`, which holds the summary, and let go of the folder.

    The first process does so, and any that has joined; a further process of a training does nothing.

    Args:
        folder: of the run.
        summary: plain values.
        results: files below the folder whose digests are kept, for `refuse_edited`.
    """
    if process_rank() == 0 or folder.resolve() in _locks:
        digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in results}
        write_json(folder / "finished.json", summary | ({"results": digests} if digests else {}))
        _unlock(folder)


def refuse_edited(folder: Path) -> None:
    """Hold the results of a finished run against the digests that were kept of them.

    Raises:
        UserError: names a file that is gone or was changed.
    """
    summary = finished(folder)
    if summary is not None and "results" not in summary:
        logger.warning("%s: an earlier version kept no digests of its results, so they cannot be checked", folder)
    for name, digest in ((summary or {}).get("results") or {}).items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            raise UserError(
                f"{'was changed' if path.exists() else 'is gone'} since the run was finished",
                f"restore it, or remove {folder} and run the same command again",
                path=path,
            )


def _read_config(path: Path) -> dict[str, Any] | None:
    remedy = f"restore it, move {path.parent} away, or choose runs=DIR"
    return read_yaml(path, remedy) if os.path.lexists(path) else None


def _write_config(path: Path, identity: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(identity, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        path: value
        for key, child in node.items()
        for path, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _differences(former: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    old, now = _flat(former), _flat(new)
    paths = [path for path in dict.fromkeys([*old, *now]) if path not in _RECORDED_ONLY]
    pairs = {path: (old.get(path, "absent"), now.get(path, "absent")) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _told(differences: dict[str, tuple[Any, Any]]) -> str:
    pairs = {path: [json.dumps(value, default=str) for value in pair] for path, pair in differences.items()}
    told = [f"{path}: {before} -> {now}" for path, (before, now) in pairs.items()]
    more = len(told) - _MOST_DIFFERENCES
    return ", ".join(told[:_MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def lock(folder: Path) -> None:
    """Hold a folder against other processes, but for those that work together, until this one ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    folder = folder.resolve()
    if folder not in _locks:
        rank = process_rank()
        _locks[folder] = _hold(folder / (".lock" if rank == 0 else f".lock.rank{rank}"))


def _hold(path: Path) -> Lock:
    held = take(path)
    if held is None:
        raise UserError("another process is at work in it", "wait for it or stop it", path=path.parent)
    return held


def _refuse_company(folder: Path) -> None:
    """Refuse while processes whose first one is gone are still at work (see `join`)."""
    for path in folder.glob(".lock.rank*"):
        _hold(path).release()


def _unlock(folder: Path) -> None:
    held = _locks.pop(folder.resolve(), None)
    if held is not None:
        held.release()


def trained_checkpoint(options: Options) -> Path:
    """The experiment's checkpoint that `checkpoint` names; a training that stopped early is used as it stands.

    Raises:
        UserError: nothing was trained yet, or samples were not scored, so that there is no best.
    """
    choice, folder = options.checkpoint, stage_folder(options, "train")
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    if not last.exists():
        raise UserError(
            "not trained yet",
            f"first run {command('train', options)} (make train EXP={options.experiment} PRESET={options.preset})",
            path=last,
        )
    if choice == "best" and not best.exists():
        raise UserError("no samples were scored", "train with trainer.score_every=N, or use checkpoint=last", path=best)
    if finished(folder) is None:
        logger.warning("%s: the training is unfinished; its checkpoint is used as it stands", folder)
    return best if choice != "last" and best.exists() else last
