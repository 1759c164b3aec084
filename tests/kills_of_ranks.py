"""Kill two processes that make screened pairs together, start them again until all are made, and check what is there.

python tests/kills_of_ranks.py FOLDER [--num 40] [--kills 10] [--seed NAME]

FOLDER holds runs/demo/train of a training with preset=smoke. In every round both processes die by SIGKILL, each
at a moment of its own: half of the moments are times, half lie just before a file operation. The pairs are judged by a
rule that rejects half of all images, by one with the screening segmenter, and by one that judges the finished set.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from killed_forks import Command, Kill, Run, begin, import_everything
from kills import afresh, differences, results, strays

from medaug.cohort import provenance
from medaug.cohort.provenance import REJECTED_FOLDER
from medaug.entries import OWN
from medaug.files import file_sha256
from medaug.imaging.reading import read_volumes
from medaug.screening.rules import Check, Rule, Sample

RANKS = 2
SHARE = 0.3
"""Moments are drawn from the first part of a run, so that a run meets several kills before it is done."""


def coin(limit: float, in_order: bool = False) -> Rule:
    """A rule that passes about this share of all images, always the same ones."""

    def judge(sample: Sample) -> list[Check]:
        figure = hashlib.sha256(sample.image.tobytes()).digest()[0] / 256
        return [Check("side", figure, limit, at_least=False)]

    return Rule(title="coin", note="", fit=lambda reference, options: judge, in_order=in_order)


COIN, COIN_IN_ORDER = coin(0.5), coin(0.45, in_order=True)


def together(command: Command, home: Path, kills: Sequence[Kill | None], timeout: float) -> list[Run]:
    """Run a command in as many processes as there are kills, each killed as asked once the first has begun to write."""
    running = [
        begin(
            *(command, home, home.with_name(f"said{rank}.txt"), kill),
            RANK=str(rank),
            WORLD_SIZE=str(len(kills)),
        )
        for rank, kill in enumerate(kills)
    ]
    running[0].wait_for_a_write()
    begun = time.monotonic()
    with ThreadPoolExecutor(len(kills)) as pool:
        return list(pool.map(lambda one: one.end(begun, timeout), running))


def draw(rng: random.Random, whole: Run) -> Kill:
    """A moment in the first part of a run; a process whose operation never comes is killed at the end."""
    end = SHARE * whole.worked
    if rng.random() < 0.5:
        return Kill(seconds=rng.uniform(0, end))
    return Kill(seconds=end, operation=rng.randint(1, int(SHARE * whole.operations)))


def torn(folder: Path, num: int) -> list[str]:
    """What is wrong with a finished set of pairs, in words; files are read and their digests computed anew."""
    lines = [line for path in folder.glob("provenance*.jsonl") for line in path.read_text().splitlines()]
    records = provenance.read_all(folder, provenance.PAIR).values()
    times = Counter(record["index"] for record in records)
    found = [f"pair {index} is there {count} times" for index, count in times.items() if count > 1]
    found += [f"pair {index} is missing" for index in range(num) if index not in times]
    if len(lines) != len(records):
        found.append(f"{len(lines)} lines for {len(records)} pairs")
    homes = folder / REJECTED_FOLDER, folder  # the first is where the pairs that were removed are
    written = {path.relative_to(home).as_posix(): path for home in homes for path in home.glob("*Tr/*")}
    contents = {file: digest for record in records for file, digest in record["contents"].items()}
    found += [f"{file} belongs to no pair" for file in written.keys() - contents.keys()]
    for file, digest in contents.items():
        if file not in written:
            found.append(f"{file} is missing")
        elif file_sha256(written[file]) != digest or not read_volumes(written[file])[0].array.size:
            found.append(f"{file} is torn")
    return found


def survive(command: Command, home: Path, num: int, kills: int, seed: str) -> list[str]:
    """Kill, restart, compare with an undisturbed run; returns what was wrong, in words, and prints a summary."""
    before, synthetic = home.with_name("before"), home / "runs/demo/synthetic"
    afresh(home, before)
    whole = together(command, home, [None] * RANKS, 600.0)
    if any(one.status for one in whole):
        raise SystemExit("\n".join(one.said for one in whole))
    wanted, faults = results(home), torn(synthetic, num)
    rng, rounds, repeats, made, sessions = random.Random(seed), 0, 0, list[int](), set[int]()
    timeout = max(300.0, 30 * whole[0].worked)
    while rounds < kills:
        afresh(before, home)
        repeats += 1
        while True:
            kill = rounds < kills
            ended = together(command, home, [draw(rng, one) if kill else None for one in whole], timeout)
            sessions |= {one.process for one in ended}
            faults += [f"traceback: {one.said}" for one in ended if "Traceback" in one.said]
            if all(one.status is not None for one in ended):
                break
            rounds += 1
            made.append(len(provenance.read_all(synthetic)))
        faults += [f"status {one.status}: {one.said}" for one in ended if one.status not in (0, 2)]
        faults += torn(synthetic, num) + differences(wanted, results(home))
    faults += [f"still at work: {words}" for words in strays(sessions)]
    rejected = len(provenance.read_all(synthetic / REJECTED_FOLDER))
    moved = len(list(synthetic.glob(f"{REJECTED_FOLDER}/labelsTr/*")))
    print(
        f"{num} pairs, {moved} of them removed, {rejected} rejected images: killed {rounds} times with {made} made; "
        f"{repeats} times to the end, {len(faults)} faults; undisturbed {whole[0].worked:.1f} s",
        *faults,
        sep="\n",
    )
    return faults


def main() -> int:
    """Kill as often as requested; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", default="kills of ranks")
    given = parser.parse_args()
    OWN["screening_rules"] |= {"coin": "kills_of_ranks:COIN", "coin_in_order": "kills_of_ranks:COIN_IN_ORDER"}
    import_everything()
    torch.set_num_threads(1)  # threads do not survive a fork, and sums are taken in one order
    home = given.folder.resolve()
    shutil.rmtree(home / "runs/demo/synthetic", ignore_errors=True)
    words = ("experiment=demo", "preset=smoke", f"num={given.num}", "batch_size=3", "screen.retries=30")
    words += ("screen.rules=[coin,near_copies,coin_in_order]", "screen.copy_quantile=1", "screen.steps=4")
    command = Command("pairs", "generate", (*words, "screen.ensemble=2"))
    return min(1, len(survive(command, home, given.num, given.kills, given.seed)))


if __name__ == "__main__":
    sys.exit(main())
