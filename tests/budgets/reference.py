# SPDX-License-Identifier: Apache-2.0
"""Plain reference of `budgets.allocation` and `budgets.adaptive`: fractions and loops over heads.

Each function has the name of the function that it is compared with.
"""

from fractions import Fraction
from math import floor

import numpy as np

from headkv_vllm.arrays import FloatArray, IntArray
from headkv_vllm.budgets.adaptive import SAFEGUARD
from headkv_vllm.budgets.allocation import MAX_WEIGHT, Allocation, Bounds


def allocate(shares: FloatArray, total: int, bounds: Bounds) -> Allocation:
    weights = [Fraction(weight) for weight in integer_weights(shares)]
    return allocate_by_weight(weights, total, bounds).reshape(shares.shape)


def allocate_by_weight(weights: list[Fraction], total: int, bounds: Bounds) -> Allocation:
    level = _level(weights, total, bounds)
    exact = [_clipped(level * weight, bounds) for weight in weights]
    blocks = [floor(blocks) for blocks in exact]
    by_remainder = sorted(range(len(exact)), key=lambda head: blocks[head] - exact[head])
    for head in by_remainder[: total - sum(blocks)]:
        blocks[head] += 1
    return np.array(blocks, dtype=np.int32)


def integer_weights(shares: FloatArray) -> list[int]:
    largest = max(float(share) for share in shares.flat)
    return [max(1, round(float(share) / largest * MAX_WEIGHT)) for share in shares.flat]


def _clipped(blocks: Fraction, bounds: Bounds) -> Fraction:
    return min(max(blocks, Fraction(bounds.min)), Fraction(bounds.max))


def _level(weights: list[Fraction], total: int, bounds: Bounds) -> Fraction:
    """The c with sum(clip(c * weight)) == total.

    The sum is linear in c between two values at which a head reaches one of its bounds.
    """

    def filled(level: Fraction) -> Fraction:
        return sum((_clipped(level * weight, bounds) for weight in weights), Fraction(0))

    knots = sorted({b / w for w in weights for b in (bounds.min, bounds.max)})
    if filled(knots[-1]) == total:
        return knots[-1]
    below = max(level for level in knots if filled(level) <= total)
    above = min(level for level in knots if filled(level) > total)
    slope = (filled(above) - filled(below)) / (above - below)
    return below + (total - filled(below)) / slope


def split_layer(counts: IntArray, total: int, bounds: Bounds) -> Allocation:
    num_pairs = sum(counts.tolist())
    shares = [
        SAFEGUARD / len(counts) + (1 - SAFEGUARD) * Fraction(count, num_pairs)
        for count in counts.tolist()
    ]
    return allocate_by_weight(shares, total, bounds)
