# SPDX-License-Identifier: Apache-2.0
"""HeadKV's budget policy: a base for every head, the rest by head score."""

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.policy import Policy
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]


def headkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """HeadKV (arXiv 2410.19258): b_h = (b - b/beta) + S_h * B, in head blocks.

    b is K and B = (K / beta) * L * H is the pool that the heads share by their scores S,
    normalised to a sum of 1. `scores` and the result are [L, H]; the result's sum is K * L * H.
    """
    pool = num_compressed_blocks / settings.beta
    return num_compressed_blocks - pool + _normalised(scores) * pool * scores.size


def _normalised(scores: FloatArray) -> FloatArray:
    # A tensor-parallel rank may hold none of the heads that score.
    if not scores.any():
        return np.full_like(scores, 1 / scores.size)
    scaled: FloatArray = scores / scores.max()
    return scaled / float(scaled.sum())


HEADKV = Policy(headkv_shares)
