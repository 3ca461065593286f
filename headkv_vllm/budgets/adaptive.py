# SPDX-License-Identifier: Apache-2.0
"""Adaptive policies: the prompt decides how a layer's head blocks are split among its heads.

As in Ada-KV (arXiv 2407.11550): of all (head, position) pairs of the layer those of the highest
attention are counted, as many as the layer may keep. Each head gets its part of that count, and
an even share besides, so that no head is left with almost nothing.
"""

from fractions import Fraction
from typing import Final

from headkv_vllm.budgets.allocation import Bounds, HeadBlocks, IntArray, allocate_by_weight

SAFEGUARD: Final = Fraction(1, 5)
"""The paper's alpha: the part of a layer's head blocks that all its heads share evenly."""


def split_layer(counts: IntArray, total: int, bounds: Bounds) -> HeadBlocks:
    """`total` head blocks of one layer for its H heads, [H]: whole ones, within `bounds`.

    counts: [H], how many of the layer's best pairs each head has; their sum is at least 1. A
    head's share is alpha * total / H + (1 - alpha) * total * counts[h] / counts.sum().
    """
    even, by_count = SAFEGUARD.numerator, SAFEGUARD.denominator - SAFEGUARD.numerator
    # The shares times a common denominator, so that heads with equal remainders stay equal.
    weights = even * counts.sum() + by_count * counts.size * counts
    return allocate_by_weight(weights, total, bounds)
