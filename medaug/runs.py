"""Run folders: which configuration a result belongs to, and whether it is complete.

A stage claims its folder, works, and finishes it. If the same command is run again, it resumes an unfinished run and
leaves a finished one as it is. Two different configurations are never mixed in one folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
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
from medaug.locks import Lock, acquire
from medaug.options import Options
from medaug.ownership import empty, finished, is_marked, mark
from medaug.paths import of_same_pairs, set_of_pairs, stage_folder
from medaug.processes import process_count, process_rank
from medaug.stages import STAGES

logger = logging.getLogger(__name__)

KEEP_SETS = "name=NAME keeps both"
"""How to keep several sets of pairs and what was measured on them, for `claim`."""
_MOST_DIFFERENCES = 5
# Recorded in config.yaml, but not part of the identity: the preset, whose keys are, and how the pairs were made, which
# `pairs` stands for and which makes a difference of pairs readable.
_RECORDED_ONLY = ("preset", "made_with")
_DIGEST = re.compile("[0-9a-f]{64}")
_locks: dict[Path, Lock] = {}  # folders that this process has locked


def command(stage: str, options: Options) -> str:
    """The command that runs a stage for the same experiment, preset and `runs` folder.

    Later stages use the preset of the training, so it is left out if the training has recorded it.
    """
    words, recorded = [f"experiment={options.experiment}"], None
    with contextlib.suppress(UserError):
        recorded = trained_preset(Path(options.runs), options.experiment)
    if not STAGES[stage].continues or recorded != options.preset:
        words.append(f"preset={options.preset}")
    if (name := set_of_pairs(options)) is not None and "name" in STAGES[stage].own:
        words.append(f"name={name}")
    if options.runs != Options.runs:
        words.append(f"runs={shlex.quote(options.runs)}")
    return f"medaug {stage} {' '.join(words)}"


def claim(
    folder: Path,
    identity: dict[str, Any],
    overwrite: bool,
    growable: tuple[str, ...] = (),
    recorded: tuple[str, ...] = (),
    keep: str = "move the folder elsewhere first to keep it",
) -> bool:
    """Claim a run folder for a configuration, and lock it against other processes until `finish` or exit.

    If several processes work together, rank 0 writes and locks, and the others return the same answer.

    Args:
        folder: folder of the run, created if absent; its `config.yaml` says which configuration it belongs to.
        identity: the configuration that the result depends on, as plain containers.
        overwrite: whether to remove the result of another configuration instead of refusing.
        growable: dotted keys that may differ without invalidating the result on disk, such as more training steps.
        recorded: keys that runs of earlier versions did not record; such a run still counts as finished, with a
            warning.
        keep: how the user can keep the result of another configuration, for the message that suggests `overwrite`.

    Returns:
        True if there is work to do, from the start or from where it stopped; False if this run is finished.

    Raises:
        UserError: the folder has another configuration's result or is not a run, or another process has locked it.
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
    told = _describe(differences, former, identity)
    unknown = [key for key in recorded if key in differences and key not in former]
    if unknown and not overwrite and finished(folder) is not None:
        logger.warning("%s: an earlier version did not record its %s, which cannot be checked", folder, unknown[0])
        differences = {key: pair for key, pair in differences.items() if key not in unknown}
    grows = bool(differences) and differences.keys() <= set(growable)
    if not is_marked(folder) and first:
        if differences and not grows:
            raise UserError(
                f"config.yaml is another run's ({told}), and no marker shows that it is medaug's",
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
        logger.info("%s: going on with %s", folder, told)
        if first:
            # In this order, so that a process that reads in between sees an unfinished run.
            (folder / "finished.json").unlink(missing_ok=True)
            _write_config(folder / "config.yaml", identity)
        return True
    if not overwrite:
        raise UserError(
            f"made with another configuration ({told})",
            f"overwrite=true replaces it, {keep}",
            path=folder,
        )
    if first:
        empty(folder)
        _begin(folder, identity)
    logger.info("%s: replaced, %s", folder, told)
    return True


def continues(folder: Path, identity: dict[str, Any], growable: tuple[str, ...] = ()) -> bool:
    """Whether a run with this configuration would continue what is in a folder; arguments as for `claim`.

    Raises:
        UserError: the folder's config.yaml cannot be read.
    """
    former = _read_config(folder / "config.yaml")
    return former is not None and _differences(former, json.loads(json.dumps(identity))).keys() <= set(growable)


def new_keys(folder: Path, keys: Iterable[str]) -> tuple[str, ...]:
    """Those of the keys that the configuration in a folder does not have; all of them if there is none.

    Raises:
        UserError: the folder's config.yaml cannot be read.
    """
    former = _read_config(folder / "config.yaml") or {}
    return tuple(key for key in keys if key not in former)


def _results(folder: Path) -> set[str]:
    """The names in a folder, without hidden files."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    mark(folder)
    _write_config(folder / "config.yaml", identity)


def join(folder: Path, identity: dict[str, Any], patience: float = 600.0) -> None:
    """Wait until rank 0 has claimed the folder, then take a per-rank lock.

    For processes that share work without communicating. Because of the lock, the folder cannot be claimed for another
    configuration while any of them is still working.

    Args:
        folder, identity: as for `claim`.
        patience: seconds to wait for rank 0.

    Raises:
        UserError: rank 0 did not claim the folder in time, or another process of the same rank is working there.
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
    """Mark a run as complete with `finished.json`, which contains the summary, and unlock the folder.

    Rank 0 and processes that called `join` do so; the other processes of a training do nothing.

    Args:
        folder: folder of the run.
        summary: plain values.
        results: files below the folder whose digests are stored, for `refuse_edited`.
    """
    if process_rank() == 0 or folder.resolve() in _locks:
        digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in results}
        write_json(folder / "finished.json", summary | ({"results": digests} if digests else {}))
        _unlock(folder)


def refuse_edited(folder: Path) -> None:
    """Check the results of a finished run against the digests that `finish` stored.

    Raises:
        UserError: a file is gone or was changed; names it.
    """
    summary = finished(folder)
    if summary is not None and "results" not in summary:
        logger.warning("%s: an earlier version stored no digests of its results, so they cannot be checked", folder)
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
    paths = [path for path in dict.fromkeys([*old, *now]) if path.partition(".")[0] not in _RECORDED_ONLY]
    pairs = {path: (old.get(path, "absent"), now.get(path, "absent")) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _describe(differences: dict[str, tuple[Any, Any]], former: dict[str, Any], new: dict[str, Any]) -> str:
    """The differences in words; of pairs, how they were made instead of their digests."""
    made = _differences(*({"how": config.get("made_with", {})} for config in (former, new)))
    shown = {path.removeprefix("how."): pair for path, pair in made.items()} if "pairs" in differences else {}
    texts = [_change(path, *pair) for path, pair in differences.items()]
    texts += [f"the pairs have {_change(path, *pair)}" for path, pair in shown.items() if path != "how"]
    more = len(texts) - _MOST_DIFFERENCES
    return ", ".join(texts[:_MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _change(path: str, before: Any, now: Any) -> str:
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (before, now)):
        return f"{path}: others" if path.endswith("s") else f"{path}: another"
    return f"{path}: {json.dumps(before, default=str)} -> {json.dumps(now, default=str)}"


def lock(folder: Path) -> None:
    """Lock a folder until this process ends; processes that work together have one lock each.

    Raises:
        UserError: another process has locked it, or it cannot be written to.
    """
    folder = folder.resolve()
    if folder not in _locks:
        rank = process_rank()
        _locks[folder] = _hold(folder / (".lock" if rank == 0 else f".lock.rank{rank}"))


def _hold(path: Path) -> Lock:
    held = acquire(path)
    if held is None:
        raise UserError("another process is at work in it", "wait for it or stop it", path=path.parent)
    return held


def _refuse_company(folder: Path) -> None:
    """Refuse while other ranks of an earlier command are still working, although its rank 0 has ended (see `join`)."""
    for path in folder.glob(".lock.rank*"):
        _hold(path).release()


def _unlock(folder: Path) -> None:
    held = _locks.pop(folder.resolve(), None)
    if held is not None:
        held.release()


def how_made(folder: Path) -> dict[str, Any]:
    """How the pairs were made that a stage measures in this folder, for `claim`; empty if they are not the run's own.

    Raises:
        UserError: the config.yaml of the pairs cannot be read.
    """
    config = _read_config(of_same_pairs(folder, "generate") / "config.yaml") or {}
    return {"made_with": {key: config[key] for key in ("generate", "masks", "sampler", "screen") if key in config}}


def trained_checkpoint(options: Options) -> Path:
    """The experiment's checkpoint that the option `checkpoint` selects, even if the training is unfinished.

    Raises:
        UserError: nothing was trained yet, or `best` is selected but no samples were scored.
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
