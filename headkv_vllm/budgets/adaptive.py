# SPDX-License-Identifier: Apache-2.0
"""Adaptive policies: the prompt decides how a layer's head blocks are split among its heads.

The split is that of Ada-KV (arXiv 2407.11550). A layer may keep a number of (head, position)
pairs, and it takes those with the highest attention. Most head blocks are split in proportion to
how many of these pairs each head has. The rest is split evenly, so that every head keeps enough.
"""

from fractions import Fraction
from typing import Final

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.allocation import Allocation, Bounds, allocate_by_weight

SAFEGUARD: Final = Fraction(1, 5)
"""The paper's alpha: the part of a layer's head blocks that is split evenly among its heads."""


def split_layer(counts: IntArray, total: int, bounds: Bounds) -> Allocation:
    """Split `total` head blocks of one layer among its H heads. Returns [H], within `bounds`.

    counts: [H], how many of the layer's best pairs each head has; the sum is at least 1. The
    share of a head is alpha * total / H + (1 - alpha) * total * counts[h] / counts.sum().
    """
    even, by_count = SAFEGUARD.numerator, SAFEGUARD.denominator - SAFEGUARD.numerator
    # The shares times a common denominator are integers, so heads with equal shares stay equal.
    weights = even * counts.sum() + by_count * counts.size * counts
    return allocate_by_weight(weights, total, bounds)
