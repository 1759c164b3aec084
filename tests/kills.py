"""Kill stages in the middle of their work, start them again until they are done, and compare with undisturbed runs.

python tests/kills.py [--kills 100] [--seed NAME] [--stages train generate ...]

Every run is a fork of one process that has imported everything, so that it costs its work and not its start. Half of
the kills come at a moment drawn uniformly from the time that the stage works (from its first write on), half just
before a file operation of its main process, drawn uniformly from all of them: the moments between two writes are too
short to be met by the clock. Every second kill of either kind ends the main process alone and leaves its workers to
themselves; the others end the whole process group. All is small and on phantoms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from dicom_files import axial, write_series
from helpers import leaves
from killed_forks import Command, Kill, Run, import_everything, run

from medaug.imaging.nifti import write_volume
from medaug.phantoms.head import write_cohort

SMALL = {
    "train": (
        *("data.phantom_subjects=5", "data.max_side=16", "data.val_fraction=0.2", "data.test_fraction=0.2"),
        *("trainer.num_workers=1", "trainer.checkpoint_every=2", "trainer.score_every=4", "trainer.score_num=2"),
        *("trainer.score_inference_steps=2", "trainer.selector_steps=2"),
    ),
    "generate": ("batch_size=3", "num=7", "strip=3"),
    "predict": ("split=train", "inpaint=[oedema]", "resample=1"),
    "audit": ("judge_steps=2", "guidance_scales=[0,1]"),
    "benchmark": ("seeds=[0]", "steps=2"),
    "export": ("format=nnunet", "out=exported"),
}
_RULES = {
    "modalities": {"T1": {"SeriesDescription": "t1"}},
    "label": "**/label*",
    "labels": {0: "background", 1: "tumour"},
}
# From an earlier ingest, because with a salt of its own every run would get other pseudonyms.
_KEY = {"format": 1, "salt": "0123456789abcdef" * 4, "subjects": {}, "cases": {}, "problems": []}


@dataclass
class Tally:
    """What happened to one command: kills by kind, how often it finished, and everything that was wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Kills of all kinds."""
        return self.kills.total()


def results(home: Path) -> dict[str, Any]:
    """What a run left below a folder, by path: contents, no times.

    Tensors count bit by bit. Left out are locks, the cache's list of digests by inode, logs and the logger's files,
    which are no results: a killed run has some lines twice, and lacks the last.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file() or path.name.startswith(".tmp-")):
        name = str(path.relative_to(home))
        if (
            path.suffix in {".lock", ".log"}
            or path.name in {".lock", "files.index"}
            or path.parent.name == "tensorboard"
        ):
            continue
        if path.is_dir():
            found[name] = None
        elif path.suffix in {".ckpt", ".pt"}:
            found[name] = _tensors(path)
        elif path.suffix == ".jsonl":
            found[name] = sorted(path.read_text().splitlines())
        elif path.suffix == ".json" and path.parent.name == "cache":
            about = json.loads(path.read_text())
            found[name] = about | {"owners": sorted(map(str, about["owners"]))}
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(path: Path) -> dict[str, Any]:
    contents = torch.load(path, weights_only=True)
    return {
        key: (value.dtype, value.shape, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if isinstance(value, torch.Tensor)
        else value
        for key, value in leaves(contents).items()
        if not key.startswith(("/loops", "/hparams"))  # Lightning counts what was begun in them, too
    }


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How the results of two runs differ, in words."""
    told = [f"{name}: is missing" for name in wanted.keys() - found.keys()]
    told += [f"{name}: is left over" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        if wanted[name] != found[name]:
            one, two = wanted[name], found[name]
            keys = [k for k in {*one, *two} if one.get(k) != two.get(k)] if isinstance(one, dict) else []
            told.append(f"{name}: differs {sorted(map(str, keys))[:4]}")
    return sorted(told)


def afresh(template: Path, home: Path) -> None:
    """Make `home` a copy of `template`, times included."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(template, home, symlinks=True)


def survive(
    command: Command, before: Path, home: Path, wanted: dict[str, Any], whole: Run, kills: int, seed: str
) -> Tally:
    """Kill a command as often as asked, start it again each time, and compare its results whenever it comes to its end.

    Args:
        command: the stage.
        before: what `home` is before the stage first runs.
        home: folder to run in; that of the undisturbed run, because manifests may hold its path.
        wanted: results of the undisturbed run.
        whole: the undisturbed run.
        kills: their number.
        seed: of their moments.
    """
    rng, tally, begun = random.Random(f"{seed}, {command.name}"), Tally(), time.monotonic()
    sessions, timeout = set[int](), max(300.0, 30 * whole.worked)
    while tally.total < kills:
        afresh(before, home)
        story: list[str] = []
        while True:
            kill = _draw(rng, tally.total, whole) if tally.total < kills else None
            ended = run(command, home, kill, timeout)
            sessions.add(ended.process)
            story.append(f"{kill}: {ended.status}")
            if "Traceback" in ended.said:
                tally.faults.append(f"traceback after {story}:\n{ended.said}")
            if ended.status is not None or kill is None:
                break
            tally.kills[kill.kind] += 1
        tally.repeats += 1
        was_done = len(story) > 1 and ended.status == 2 and "exists already" in ended.said
        if ended.status != 0 and not was_done:
            tally.faults.append(f"status {ended.status} after {story}:\n{ended.said}")
        if wrong := differences(wanted, results(home)):
            tally.faults.append(f"after {story}: {'; '.join(wrong)}\n{ended.said if was_done else ''}")
    tally.seconds = time.monotonic() - begun
    tally.faults += [f"still at work: {words}" for words in strays(sessions)]
    return tally


def _draw(rng: random.Random, number: int, whole: Run) -> Kill:
    alone = number % 4 in (1, 2)
    if number % 2 == 0:
        return Kill(seconds=rng.uniform(0, whole.worked), alone=alone)
    return Kill(operation=rng.randint(1, whole.operations), alone=alone)


def strays(sessions: Collection[int], patience: float = 60.0) -> list[str]:
    """Command lines of processes in these sessions that have not ended by themselves."""
    end = time.monotonic() + patience
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, *_, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if state != "Z" and int(session) in sessions:
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def commands(sources: Path) -> list[Command]:
    """All stages in the order of the loop; what they read from outside their folder is made in `sources`."""
    write_cohort(sources / "nifti", 8, (32, 32, 32), 0)
    _write_dicom(sources)
    nifti = f"root={sources / 'nifti'}", "accept_labels=true", "out=cohort.json", "folds=3"
    rules = f"rules={sources / 'rules.yaml'}"
    dicom = f"root={sources / 'dicom'}", "layout=dicom", rules, "out=converted.json", "report=report.json"
    few = "workers=1", "val_fraction=0.2"
    loop = ("experiment=demo", "preset=smoke")
    return [
        Command("ingest", "ingest", (*nifti, *few)),
        Command("ingest of DICOM", "ingest", (*dicom, *few)),
        *(Command(stage, stage, (*loop, *words)) for stage, words in SMALL.items()),
    ]


def _write_dicom(folder: Path) -> None:
    for index in range(6):
        rng = np.random.default_rng(index)
        array = rng.integers(1, 900, (16, 16, 8)).astype(np.int16)
        array[:2], array[:, :2] = 0, 0
        case = folder / "dicom" / f"patient{index}"
        write_series(case / "t1", array, axial(), PatientID=f"P{index}", SeriesDescription="t1")
        label = np.zeros(array.shape, np.uint8)
        label[5:9, 5:10, 2:6] = 1
        write_volume(case / "label.nii.gz", label, axial())
    (folder / "rules.yaml").write_text(yaml.safe_dump(_RULES))


def undisturbed(command: Command, home: Path) -> tuple[dict[str, Any], Run]:
    """The results of an undisturbed command in `home`, and how the run went.

    Raises:
        SystemExit: it fails.
    """
    whole = run(command, home)
    if whole.status != 0:
        raise SystemExit(f"{command.name}: status {whole.status} without a kill\n{whole.said}")
    return results(home), whole


def main() -> int:
    """Kill every stage and print the results; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="per stage")
    parser.add_argument("--seed", default="kills", help="name of the seed of the moments")
    parser.add_argument("--stages", nargs="+", choices=["ingest", *SMALL], default=["ingest", *SMALL])
    given = parser.parse_args()
    import_everything()
    torch.set_num_threads(1)  # threads do not survive a fork, and sums are taken in one order
    faults = 0
    with tempfile.TemporaryDirectory(prefix="medaug-kills-") as folder:
        work = Path(folder).resolve()
        home, before, after = work / "home", work / "before", work / "after"
        home.mkdir()
        (home / "converted.private.json").write_text(json.dumps(_KEY))
        for command in commands(work / "sources"):
            afresh(home, before)
            wanted, whole = undisturbed(command, home)
            if command.stage not in given.stages:
                continue
            afresh(home, after)
            tally = survive(command, before, home, wanted, whole, given.kills, given.seed)
            afresh(after, home)
            faults += len(tally.faults)
            kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(tally.kills.items()))
            print(
                f"{command.name}: {tally.total} kills ({kinds}), {tally.repeats} times to the end, "
                f"{len(tally.faults)} faults; undisturbed {whole.worked:.1f} s and {whole.operations} file operations; "
                f"{tally.seconds:.0f} s in all",
                *tally.faults,
                sep="\n",
                flush=True,
            )
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
