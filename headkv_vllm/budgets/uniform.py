# SPDX-License-Identifier: Apache-2.0
"""The uniform budget policy: the same for every head, as in SnapKV."""

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.policy import Policy
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]


def uniform_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """K head blocks for every head (SnapKV, arXiv 2404.14469); [L, H] as `scores`."""
    return np.full_like(scores, num_compressed_blocks)


UNIFORM = Policy(uniform_shares)
