"""PSNR, SSIM, entropy and AUROC against other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import PSNRMetric
from scipy import stats
from sklearn.metrics import roc_auc_score

from medaug.evaluation.images import psnr, ssim
from medaug.evaluation.uncertainty import auroc, entropy

RNG = np.random.default_rng(0)


def pair(shape=(12, 14, 10), noise=0.2):
    truth = RNG.uniform(-1, 1, shape).astype(np.float32)
    return (truth + noise * RNG.standard_normal(shape)).astype(np.float32), truth


def test_psnr_is_monais():
    image, truth = pair()
    theirs = PSNRMetric(max_val=2.0)(torch.from_numpy(image)[None, None], torch.from_numpy(truth)[None, None])
    assert psnr(image, truth) == pytest.approx(float(theirs), rel=1e-5)
    assert psnr(truth, truth) == pytest.approx(10 * np.log10(4e10))


def test_ssim_is_one_for_equals_falls_with_noise_and_fits_thin_volumes():
    image, truth = pair()
    worse, _ = truth + 3 * (image - truth), None
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert 1 > ssim(image, truth) > ssim(worse, truth) > 0
    assert 0 < ssim(image[..., :4], truth[..., :4]) < 1


def test_entropy_is_scipys():
    p = RNG.dirichlet([0.5, 0.5, 0.5], (3, 4, 5)).transpose(3, 0, 1, 2)
    p[:, 0, 0, 0] = (0, 1, 0)
    np.testing.assert_allclose(entropy(p), stats.entropy(p, axis=0), atol=1e-6)


def test_auroc_is_that_of_scikit_learn_also_with_ties():
    score = RNG.integers(0, 6, 500).astype(float)
    positive = RNG.random(500) < 0.1 + score / 10
    assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    assert auroc(score, np.zeros(500, bool)) is None and auroc(score, np.ones(500, bool)) is None
