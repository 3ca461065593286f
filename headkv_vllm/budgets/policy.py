# SPDX-License-Identifier: Apache-2.0
"""What a budget policy is."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]


class Shares(Protocol):
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


@dataclass(frozen=True)
class Policy:
    """How many entries each head keeps, and which.

    shares: how many, from the head scores and the prompt's length alone.
    positions: which ones: "attention", those that the window attends most; or "recency", the
        first `Settings.sink` and the last before the window.
    adaptive: whether the prompt decides how a layer's head blocks are split among its heads, see
        `adaptive.split_layer`; of the shares only the sum of each layer then counts.
    """

    shares: Shares
    positions: Literal["attention", "recency"] = "attention"
    adaptive: bool = False
