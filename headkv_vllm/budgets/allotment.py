# SPDX-License-Identifier: Apache-2.0
"""Deals a request's compressed head blocks out to its heads, to the last one."""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import Settings

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
HeadBlocks = npt.NDArray[np.int32]

FINEST = 2**20
"""The heaviest head's weight: its product with any number of heads and blocks fits in int64."""


def allot_head_blocks(scores: FloatArray, budget: RequestBudget, settings: Settings) -> HeadBlocks:
    """The number of head blocks of every head, n[L, H], for head scores [L, H].

    n.sum() == K*L*H and min_blocks <= n <= F, for a compressed request with
    min_blocks <= K < F. A tensor-parallel rank passes the scores of its own heads.

    The policy is the request's. Under an adaptive one n.sum(1) is what each layer gets, and the
    even split among its heads stands for that which the prompt decides.
    """
    num_blocks, most = budget.num_compressed_blocks, budget.num_full_blocks
    policy, bounds = POLICIES[budget.policy], Bounds(settings.min_blocks, most)
    shares = policy.shares(scores, num_blocks, most, settings)
    dealt = deal_out(shares, num_blocks * scores.size, bounds)
    return split_evenly(dealt) if policy.adaptive else dealt


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most head blocks that a head may have."""

    fewest: int
    most: int


def deal_out(shares: FloatArray, total: int, bounds: Bounds) -> HeadBlocks:
    """`total` head blocks in proportion to `shares`, of any shape: see `deal_by_weight`."""
    weights = integer_weights(shares.ravel())
    return deal_by_weight(weights, total, bounds).reshape(shares.shape)


def deal_by_weight(weights: IntArray, total: int, bounds: Bounds) -> HeadBlocks:
    """`total` head blocks in proportion to `weights` [N], which are positive.

    Water-filling: x = clip(c * weights, fewest, most) with the one c that makes
    x.sum() == total, so that what a bounded head cannot use or has too little of
    goes to or comes from the others in proportion to their weights. Then x is rounded down and
    the largest remainders get what is left, equal ones by index. All in integers, and
    weights.sum() * total must fit in int64: the same on every machine, and without a block lost.
    """
    assert 1 <= bounds.fewest < bounds.most, bounds
    assert bounds.fewest <= total / weights.size <= bounds.most, (total, weights.size, bounds)
    level = _Level(weights, total, bounds)
    dealt = np.where(weights >= level.first_capped, bounds.most, bounds.fewest)
    free = (weights > level.last_lifted) & (weights < level.first_capped)
    if free.any():
        dealt[free] = largest_remainder(weights[free], total - int(dealt[~free].sum()))
    return dealt.astype(np.int32)


def integer_weights(shares: FloatArray) -> IntArray:
    """`shares` [..., N] as integers from 1 to `FINEST`.

    At least 1, so that even heads without a share can take what all others are full for.
    """
    scaled: FloatArray = np.rint(shares / shares.max(-1, keepdims=True) * FINEST)
    return np.maximum(scaled, 1).astype(np.int64)


class _Level:
    """Which heads of `weights` [N] the bounds hold at the level c where the sum is `total`.

    first_capped: heads of at least this weight get `bounds.most`.
    last_lifted: heads of at most this weight get `bounds.fewest`.
    """

    def __init__(self, weights: IntArray, total: int, bounds: Bounds) -> None:
        self._weights = np.sort(weights)
        self._sums = np.concatenate(([0], np.cumsum(self._weights)))
        self._total, self._bounds = total, bounds
        # The heavier a head, the sooner a rising level takes it to either bound.
        most, fewest = bounds.most, bounds.fewest
        capped = bisect_left(self._weights, True, key=lambda w: self._excess(most, int(w)) <= 0)
        lifted = bisect_left(self._weights, True, key=lambda w: self._excess(fewest, int(w)) < 0)
        self.first_capped = int(self._weights[capped]) if capped < weights.size else 2**63 - 1
        self.last_lifted = int(self._weights[lifted - 1]) if lifted else 0

    def _excess(self, blocks: int, weight: int) -> int:
        """(x.sum() - total) * weight at the level c = blocks / weight, in exact integers."""
        fewest, most = self._bounds.fewest, self._bounds.most
        low = int(np.searchsorted(self._weights, fewest * weight // blocks, side="right"))
        high = int(np.searchsorted(self._weights, -(-most * weight // blocks), side="left"))
        free_sum = int(self._sums[high] - self._sums[low])
        held = fewest * low + most * (self._weights.size - high)
        return blocks * free_sum + (held - self._total) * weight


def largest_remainder(weights: IntArray, total: int) -> IntArray:
    """`total` in proportion to `weights` [N], which are >= 0 and not all zero.

    Rounded down, and one more for the largest remainders; of equal ones for the first.
    """
    dealt, remainders = np.divmod(weights * total, weights.sum())
    left = total - int(dealt.sum())
    dealt[np.argsort(-remainders, kind="stable")[:left]] += 1
    return dealt


def split_evenly(dealt: HeadBlocks) -> HeadBlocks:
    """The sums of the rows of `dealt` [L, H], spread as evenly as whole blocks go."""
    fewest, left = np.divmod(dealt.sum(1, keepdims=True), dealt.shape[1])
    split: HeadBlocks = (fewest + (np.arange(dealt.shape[1]) < left)).astype(np.int32)
    return split
