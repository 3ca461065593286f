# SPDX-License-Identifier: Apache-2.0
"""The budget policies, by the names that `Settings.policy` allows."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.headkv import headkv_shares
from headkv_vllm.budgets.uniform import uniform_shares
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]


class Policy(Protocol):
    """Says what share of a request's head blocks every head should have."""

    def __call__(
        self,
        scores: FloatArray,
        num_compressed_blocks: int,
        num_full_blocks: int,
        settings: Settings,
    ) -> FloatArray:
        """Shares [L, H], in head blocks, for `scores` [L, H], which are finite and >= 0.

        Shares are >= 0, finite and not all zero. They need not be whole, nor keep to any
        bounds: `allotment.deal_out` sees to that, and keeps their proportions.
        """
        ...


POLICIES: dict[str, Policy] = {"headkv": headkv_shares, "uniform": uniform_shares}
