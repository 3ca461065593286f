# SPDX-License-Identifier: Apache-2.0
"""HeadKV with its scores on the wrong heads: what is left of it without their knowledge."""

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.headkv import headkv_shares
from headkv_vllm.budgets.policy import Policy
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]
SEED = 0


def random_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """`headkv_shares` of the same scores [L, H] in another order, always the same one.

    A control: budgets are spread as widely as HeadKV's, over heads that did not earn them. A
    tensor-parallel rank shuffles the scores of its own heads.
    """
    shuffled = np.random.default_rng(SEED).permutation(scores.ravel()).reshape(scores.shape)
    return headkv_shares(shuffled, num_compressed_blocks, num_full_blocks, settings)


RANDOM = Policy(random_shares)
