# SPDX-License-Identifier: Apache-2.0
"""`allotment` written out with fractions, for tests to compare with."""

from fractions import Fraction
from math import floor

import numpy as np

from headkv_vllm.budgets.allotment import FINEST, Bounds, FloatArray, HeadBlocks


def deal_out_plain(shares: FloatArray, total: int, bounds: Bounds) -> HeadBlocks:
    """The same as `allotment.deal_out`."""
    weights = [Fraction(weight) for weight in integer_weights_plain(shares)]
    return deal_by_weight_plain(weights, total, bounds).reshape(shares.shape)


def deal_by_weight_plain(weights: list[Fraction], total: int, bounds: Bounds) -> HeadBlocks:
    """The same as `allotment.deal_by_weight`: one head, one level and one block at a time."""
    level = _level(weights, total, bounds)
    exact = [_held(level * weight, bounds) for weight in weights]
    dealt = [floor(blocks) for blocks in exact]
    by_remainder = sorted(range(len(exact)), key=lambda head: dealt[head] - exact[head])
    for head in by_remainder[: total - sum(dealt)]:
        dealt[head] += 1
    return np.array(dealt, dtype=np.int32)


def integer_weights_plain(shares: FloatArray) -> list[int]:
    """The same as `allotment.integer_weights`."""
    largest = max(float(share) for share in shares.flat)
    return [max(1, round(float(share) / largest * FINEST)) for share in shares.flat]


def _held(blocks: Fraction, bounds: Bounds) -> Fraction:
    return min(max(blocks, Fraction(bounds.fewest)), Fraction(bounds.most))


def _level(weights: list[Fraction], total: int, bounds: Bounds) -> Fraction:
    """The c with sum(clip(c * weight)) == total: between bounds that a head meets, it is a line."""

    def filled(level: Fraction) -> Fraction:
        return sum((_held(level * weight, bounds) for weight in weights), Fraction(0))

    meets = sorted({b / w for w in weights for b in (bounds.fewest, bounds.most)})
    if filled(meets[-1]) == total:
        return meets[-1]
    below = max(level for level in meets if filled(level) <= total)
    above = min(level for level in meets if filled(level) > total)
    slope = (filled(above) - filled(below)) / (above - below)
    return below + (total - filled(below)) / slope
