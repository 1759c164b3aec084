"""The screening segmenter, and a record of the scans that it and the thresholds of the rules were fitted on.

The screening segmenter is trained on the labelled training scans, with a seed of its own, and is used for nothing else.
The audit's judge, the benchmark's segmenters and the segmenter that scores samples during training are other networks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medaug.cohort.provenance import record_digest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Contents, Seen
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.files import file_sha256, write_json
from medaug.inputs import parsing, read_json
from medaug.locks import locked
from medaug.options import ScreenOptions, SegmenterOptions
from medaug.segmentation.protocol import TrainingSet
from medaug.segmentation.unet import load_segmenter, save_segmenter, train_segmenter

RECORD, WEIGHTS, LOCK = "screener.json", "screener.pt", ".lock.screener"
_REMEDY = "restore it, or remove the folder and generate again"


@dataclass(frozen=True)
class Screener:
    """What the rules of a run were fitted on.

    Attributes:
        seen: subjects and files. "train": used for the weights and thresholds; "val": used for thresholds only.
        digest: SHA-256 of the record; the provenance of every screened pair holds it.
    """

    seen: Seen
    digest: str

    @classmethod
    def load(cls, folder: Path) -> Screener | None:
        """Read the record in the folder of a run; None if there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / RECORD
        if not os.path.lexists(path):
            return None
        stored = read_json(path, _REMEDY)
        with parsing(path, _REMEDY):
            subjects = {str(split): [str(name) for name in names] for split, names in stored["subjects"].items()}
            return cls(Seen(subjects, frozenset(map(str, stored["contents"]))), record_digest(stored))


def prepare_screener(
    folder: Path,
    scans: Mapping[str, Sequence[ModelCase]],
    contents: Contents,
    schema: LabelSchema,
    options: ScreenOptions,
    size: SegmenterOptions,
    seed: int,
    wanted: int,
) -> tuple[Screener, list[nn.Module]]:
    """Train the screening segmenters and write their record, or load them if they exist.

    If several processes share the run, one of them trains, and the others wait for it.

    Args:
        folder: folder of the run.
        scans: real scans by split, "train" and "val".
        contents: digests of the scans' files.
        schema: the label schema.
        options: this function reads `steps`.
        size: options of the segmenter.
        seed: root seed of the run.
        wanted: number of segmenters. The first is the one that the rules read; with the others it judges where masks
            are doubtful.

    Raises:
        UserError: there are too few labelled scans, the training failed, or a file is damaged.
    """
    labelled = [case for case in scans["train"] if case.label is not None]
    if wanted and not labelled:
        raise UserError("screen.rules: no training scan has a label to train a segmenter on", "set screen=none")
    weights = [folder / (f"screener_{number}.pt" if number else WEIGHTS) for number in range(wanted)]
    with locked(folder / LOCK, wait=True):
        for number, path in enumerate(weights):
            if not path.exists():
                own = named_seed(seed, "screener", *([number] if number else []))
                net = train_segmenter(TrainingSet(labelled), schema.num_classes, size, options.steps, own, "screener")
                save_segmenter(net, path)
        if not (folder / RECORD).exists():
            write_json(folder / RECORD, _record(scans, contents, weights))
    screener = Screener.load(folder)
    assert screener is not None
    stored = read_json(folder / RECORD, _REMEDY)
    for path, digest in zip(weights, [stored.get("weights"), *stored.get("ensemble", ())], strict=False):
        if digest != file_sha256(path):
            raise UserError("is not the segmenter that screened the pairs of this run", _REMEDY, path=path)
    channels = len(labelled[0].image) if labelled else 0
    return screener, [load_segmenter(path, channels, schema.num_classes, size.channels) for path in weights]


def _record(scans: Mapping[str, Sequence[ModelCase]], contents: Contents, weights: Sequence[Path]) -> dict[str, Any]:
    cases = [case.case for members in scans.values() for case in members]
    digests = [file_sha256(path) for path in weights]
    return {
        "weights": digests[0] if digests else None,
        **({"ensemble": digests[1:]} if len(digests) > 1 else {}),
        "subjects": {split: sorted({case.case.subject for case in members}) for split, members in scans.items()},
        "contents": sorted({digest for case in cases for digest in contents[case.name]}),
    }
