"""Uncertainty of a label map from several samples, and whether it is high where the label is wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def entropy(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Entropy of class probabilities (C, X, Y, Z) in nats: 0 if a class is certain, log C if all are equally likely."""
    p = np.clip(probabilities, 1e-12, 1.0)
    return np.asarray(np.maximum(-(probabilities * np.log(p)).sum(0), 0.0), np.float32)


def auroc(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the probability that a positive scores above a negative, where ties count half.

    Computed from ranks (Mann & Whitney 1947). None if there are no positives or no negatives.
    """
    score, positive = np.ravel(score), np.ravel(positive)
    number = int(positive.sum())
    others = len(positive) - number
    if not number or not others:
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - number * (number + 1) / 2) / (number * others))
