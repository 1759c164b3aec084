"""Where the screening segmenters doubt a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medaug.cohort.schema import IGNORE
from medaug.screening.rules import Sample
from medaug.segmentation.unet import compute_logits


def doubt(nets: Sequence[nn.Module], sample: Sample) -> NDArray[np.uint8]:
    """Where the most probable class according to an ensemble is not the class in the mask.

    The probabilities are the mean over the segmenters (a deep ensemble: Lakshminarayanan, Pritzel and Blundell, Simple
    and scalable predictive uncertainty estimation using deep ensembles, 2017, section 2.4). Ignored voxels are never
    doubted.

    Args:
        nets: the segmenters.
        sample: a pair in model space.

    Returns:
        (X, Y, Z), 1 where the mask is doubted, 0 elsewhere and outside the host.

    Raises:
        UserError: the output of a segmenter is NaN or infinite.
    """
    image = torch.from_numpy(np.array(sample.image))
    shares = torch.stack([compute_logits(net, image).float().softmax(0) for net in nets]).mean(0)
    found = shares.argmax(0).to(torch.uint8).cpu().numpy()
    doubted = np.zeros(sample.mask.shape, np.uint8)
    box = sample.inside
    doubted[box] = (found[box] != sample.mask[box]) & (sample.mask[box] != IGNORE)
    return doubted
