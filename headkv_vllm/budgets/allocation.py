# SPDX-License-Identifier: Apache-2.0
"""Turns the shares of the heads into whole head blocks: exactly K * L * H, within bounds."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headkv_vllm.arrays import FloatArray, IntArray
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import Settings

Allocation = npt.NDArray[np.int32]
"""How many head blocks each head keeps: n[L, H], or [H] of one layer."""

MAX_WEIGHT: Final = 2**20
"""The weight of the heaviest head. Products with numbers of heads and blocks fit in int64."""


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest number of head blocks that a head may have."""

    min: int
    max: int


def allocate_head_blocks(
    scores: FloatArray, budget: RequestBudget, settings: Settings
) -> Allocation:
    """The allocation n[L, H]: the number of head blocks of every head.

    scores: [L, H]. A tensor-parallel rank passes the scores of its own heads.
    budget: of a compressed request with min_blocks <= K < F; its policy decides the shares.
    Returns n with n.sum() == K * L * H and min_blocks <= n <= F.

    Under an adaptive policy, n.sum(1) is the number of head blocks of each layer. The prompt
    decides the split inside a layer later. Until then n splits each layer evenly.
    """
    num_blocks, num_full_blocks = budget.num_compressed_blocks, budget.num_full_blocks
    policy = POLICIES[budget.policy]
    shares = policy.shares(scores, num_blocks, num_full_blocks, settings)
    bounds = Bounds(settings.min_blocks, num_full_blocks)
    allocation = allocate(shares, num_blocks * scores.size, bounds)
    return split_evenly(allocation) if policy.adaptive else allocation


def allocate(shares: FloatArray, total: int, bounds: Bounds) -> Allocation:
    """Allocate `total` head blocks in proportion to `shares`, of any shape.

    See `allocate_by_weight`.
    """
    weights = integer_weights(shares.ravel())
    return allocate_by_weight(weights, total, bounds).reshape(shares.shape)


def allocate_by_weight(weights: IntArray, total: int, bounds: Bounds) -> Allocation:
    """Allocate `total` head blocks in proportion to `weights` [N], which are positive.

    The algorithm is water-filling: x = clip(c * weights, min, max), with the c for which
    x.sum() == total. So the other heads get what a full head cannot use, in proportion to their
    weights. They also give what a head needs to reach the minimum. Then x is rounded down, and
    the heads with the largest remainders get one block more each; of equal remainders, the first.

    All numbers are integers, so every machine gets the same result. weights.sum() * total must
    fit in int64.
    """
    assert 1 <= bounds.min < bounds.max, bounds
    assert bounds.min <= total / weights.size <= bounds.max, (total, weights.size, bounds)
    level = _WaterLevel(weights, total, bounds)
    allocation = np.where(weights >= level.first_at_max, bounds.max, bounds.min)
    free = (weights > level.last_at_min) & (weights < level.first_at_max)
    if free.any():
        allocation[free] = largest_remainder(weights[free], total - int(allocation[~free].sum()))
    return allocation.astype(np.int32)


def integer_weights(shares: FloatArray) -> IntArray:
    """`shares` [..., N] as integers from 1 to `MAX_WEIGHT`.

    A head with a share of 0 has a weight of 1, so it can get blocks when all other heads are full.
    """
    scaled: FloatArray = np.rint(shares / shares.max(-1, keepdims=True) * MAX_WEIGHT)
    return np.maximum(scaled, 1).astype(np.int64)


class _WaterLevel:
    """Which heads are at one of their bounds, at the c of `allocate_by_weight`.

    first_at_max: all heads of at least this weight get `bounds.max`.
    last_at_min: all heads of at most this weight get `bounds.min`.
    """

    def __init__(self, weights: IntArray, total: int, bounds: Bounds) -> None:
        self._weights = np.sort(weights)
        self._sums = np.concatenate(([0], np.cumsum(self._weights)))
        self._total, self._bounds = total, bounds
        # When c grows, heavier heads leave the minimum and reach the maximum first.
        at_max = bisect_left(
            self._weights, True, key=lambda w: self._excess(bounds.max, int(w)) <= 0
        )
        at_min = bisect_left(
            self._weights, True, key=lambda w: self._excess(bounds.min, int(w)) < 0
        )
        self.first_at_max = int(self._weights[at_max]) if at_max < weights.size else 2**63 - 1
        self.last_at_min = int(self._weights[at_min - 1]) if at_min else 0

    def _excess(self, blocks: int, weight: int) -> int:
        """(x.sum() - total) * weight at c = blocks / weight, in exact integers."""
        low, high = self._bounds.min, self._bounds.max
        num_low = int(np.searchsorted(self._weights, low * weight // blocks, side="right"))
        first_high = int(np.searchsorted(self._weights, -(-high * weight // blocks), side="left"))
        free_sum = int(self._sums[first_high] - self._sums[num_low])
        bounded = low * num_low + high * (self._weights.size - first_high)
        return blocks * free_sum + (bounded - self._total) * weight


def largest_remainder(weights: IntArray, total: int) -> IntArray:
    """Split `total` in proportion to `weights` [N], which are >= 0 and not all zero.

    Parts are rounded down. The largest remainders then get one more; of equal ones, the first.
    """
    allocation, remainders = np.divmod(weights * total, weights.sum())
    left = total - int(allocation.sum())
    allocation[np.argsort(-remainders, kind="stable")[:left]] += 1
    return allocation


def split_evenly(allocation: Allocation) -> Allocation:
    """`allocation` [L, H] with the same sum in each layer, split as evenly as possible."""
    each, left = np.divmod(allocation.sum(1, keepdims=True), allocation.shape[1])
    split: Allocation = (each + (np.arange(allocation.shape[1]) < left)).astype(np.int32)
    return split
