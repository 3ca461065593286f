# SPDX-License-Identifier: Apache-2.0
"""Splits a layer's head blocks among its heads by what they attend in one prompt.

As in Ada-KV (arXiv 2407.11550): of all (head, position) pairs of the layer those of the highest
attention are counted, as many as the layer may keep; each head gets its part of that count, and
an even share besides, so that none is left with next to nothing.
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.allotment import Bounds, HeadBlocks, deal_by_weight
from headkv_vllm.budgets.allotment_plain import deal_by_weight_plain

SAFEGUARD = Fraction(1, 5)
"""The paper's alpha: the part of a layer's head blocks that goes to all its heads evenly."""


def split_layer(counts: npt.NDArray[np.int64], total: int, bounds: Bounds) -> HeadBlocks:
    """`total` head blocks of one layer for its H heads, [H]: whole ones, within `bounds`.

    counts: [H], how many of the layer's best pairs each head has, at least one of them. A head's
    share is alpha * total / H + (1 - alpha) * total * counts[h] / counts.sum().
    """
    even, by_count = SAFEGUARD.numerator, SAFEGUARD.denominator - SAFEGUARD.numerator
    # The shares times a common denominator, so that heads with equal remainders stay equal.
    weights = even * counts.sum() + by_count * counts.size * counts
    return deal_by_weight(weights, total, bounds)


def split_layer_plain(counts: npt.NDArray[np.int64], total: int, bounds: Bounds) -> HeadBlocks:
    """Plain twin of `split_layer`."""
    num_pairs = sum(counts.tolist())
    shares = [
        SAFEGUARD / len(counts) + (1 - SAFEGUARD) * Fraction(count, num_pairs)
        for count in counts.tolist()
    ]
    return deal_by_weight_plain(shares, total, bounds)
