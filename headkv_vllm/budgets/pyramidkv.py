# SPDX-License-Identifier: Apache-2.0
"""PyramidKV's budget policy: much for the first layers, little for the last."""

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.policy import Policy
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]
STEEPNESS = 20
"""The paper's beta, not HeadKV's: the last layer has one part in so many of the mean."""


def pyramidkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """PyramidKV (arXiv 2406.02069): an arithmetic sequence from 2K - K/20 down to K/20.

    The same for all heads of a layer, but for rounding; [L, H] as `scores`, with a mean of K.
    """
    num_layers, last = len(scores), num_compressed_blocks / STEEPNESS
    if num_layers == 1:
        return np.full_like(scores, num_compressed_blocks)
    by_layer = np.linspace(2 * num_compressed_blocks - last, last, num_layers)
    return np.repeat(by_layer[:, None], scores.shape[1], axis=1)


PYRAMIDKV = Policy(pyramidkv_shares)
