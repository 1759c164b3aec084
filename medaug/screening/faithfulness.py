"""Rule "faithfulness": rejects images in which the screening segmenter does not find what the mask says.

Real validation scans set the standard.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.lesions import lesion_sensitivity
from medaug.evaluation.scores import MEAN_FOREGROUND, structure_dice
from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample
from medaug.segmentation.unet import segment

log = logging.getLogger(__name__)


def _fit(reference: Reference, options: ScreenOptions) -> Judge:
    schema, net = reference.schema, reference.net
    real = [Sample.of_case(case) for case in reference.labelled_val]
    if not real:
        raise UserError(
            "screen.rules: the rule faithfulness needs labelled validation scans",
            "raise data.val_fraction and train again, or leave the rule out",
        )
    assert net is not None

    def measure(sample: Sample) -> dict[str, float]:
        found = segment(net, np.array(sample.image))  # a copy, because torch needs writable memory
        figures = {f"Dice of {name}": dice for name, dice in structure_dice(found, sample.mask, schema).items()}
        predicted, truth = schema.structure_masks(found), schema.structure_masks(sample.mask)
        return figures | {
            f"lesions of {name} found": lesion_sensitivity(predicted[name], truth[name]) for name in reference.lesions
        }

    rows = [measure(scan) for scan in real]
    thresholds = {name: threshold([row[name] for row in rows], options.dice_quantile) for name in rows[0]}
    _warn_of_a_poor_segmenter(reference, rows)

    def judge(sample: Sample) -> list[Check]:
        return [Check(name, figure, thresholds[name], at_least=True) for name, figure in measure(sample).items()]

    return judge


def threshold(figures: Sequence[float], share: float) -> float:
    """The figure below which this share of new scans is expected, if they are like the n scans of the given figures.

    A new scan is equally likely to fall into each of the n + 1 gaps between the figures in ascending order, so a share
    k / (n + 1) of new scans is expected below the k-th figure (Hyndman and Fan, Sample quantiles in statistical
    packages, 1996, definition 6). The usual percentile (definition 7) lies higher: of 22 scans, 13.5% of new ones fall
    below their 10th percentile. If the share is below 1 / (n + 1), it is the lowest figure.
    """
    return float(np.quantile(figures, share, method="weibull"))


def _warn_of_a_poor_segmenter(reference: Reference, rows: list[dict[str, float]]) -> None:
    labelled = reference.labelled
    labels, subjects = [np.asarray(case.label) for case in labelled], [case.case.subject for case in labelled]
    dice = float(np.mean([value for row in rows for name, value in row.items() if name.startswith("Dice of ")]))
    floor = trivial_dice(labels, subjects, reference.schema)[MEAN_FOREGROUND]
    log.info("the screening segmenter's mean foreground Dice on %d validation scans: %.3f", len(rows), dice)
    if dice <= floor:
        log.warning(
            "the screening segmenter's Dice on real scans does not exceed that of a trivial baseline (%.3f), so its "
            "verdicts on faithfulness say nothing; raise screen.steps",
            floor,
        )


FAITHFULNESS = Rule(
    title="faithfulness",
    note="images in which the screening segmenter does not find what the mask says: Dice per structure, and share of "
    "lesions found, compared with a low percentile of real validation scans",
    fit=_fit,
    needs_segmenter=True,
)
