# SPDX-License-Identifier: Apache-2.0
"""Blocks in proportion to weights, in integers: the parts of `allotment.deal_by_weight`.

The kernels that use them are compared with it, or with its own plain twin.
"""

import triton
import triton.language as tl


@triton.jit
def dealt_at_level(weights, is_head, first_capped, last_lifted, total, most, FEWEST: tl.constexpr):
    """`total` blocks in proportion to `weights`, int64, within `FEWEST` and `most`.

    Heads of weights from `first_capped` on get the most, those up to `last_lifted` the fewest, and
    the others what is left: rounded down, and one more for the largest remainders.
    """
    is_free = is_head & (weights > last_lifted) & (weights < first_capped)
    dealt = tl.where(weights >= first_capped, most, FEWEST)
    left = total - tl.sum(tl.where(is_head & (is_free == 0), dealt, 0), 0)
    has_free = tl.sum(is_free.to(tl.int32), 0) > 0
    shared = in_proportion(tl.where(is_free, weights, 0), is_free, tl.where(has_free, left, 0))
    return tl.where(is_head, tl.where(is_free, shared, dealt), 0)


@triton.jit
def in_proportion(weights, is_used, total):
    """`total` in proportion to `weights`, int64, which are 0 where nothing is to be had.

    Rounded down, and one more for the largest remainders, of equal ones for the first.
    """
    all_weights = tl.maximum(tl.sum(weights, 0), 1)
    dealt = tl.where(is_used, weights * total // all_weights, 0)
    remainders = tl.where(is_used, weights * total % all_weights, -1)
    return dealt + _has_one_more(remainders, total - tl.sum(dealt, 0), all_weights)


@triton.jit
def _has_one_more(remainders, left, above_all):
    """1 for the `left` lanes of the largest `remainders`, of equal ones for the first; else 0.

    Remainders are -1 in lanes that are out of the question.
    """
    low, high = above_all * 0, above_all
    while high - low > 1:  # the greatest value that at least `left` lanes reach
        middle = (low + high) // 2
        reaches = tl.sum((remainders >= middle).to(tl.int64), 0) >= left
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    is_above = (remainders > low).to(tl.int64)
    is_equal = (remainders == low).to(tl.int64)
    is_chosen = is_equal & (tl.cumsum(is_equal, 0) <= left - tl.sum(is_above, 0)).to(tl.int64)
    return tl.where(left > 0, is_above + is_chosen, 0)


@triton.jit
def excess(blocks, weight, weights, is_head, total, most, FEWEST: tl.constexpr):
    """(blocks dealt - total) * weight, at the level where a head of `weight` has `blocks`."""
    dealt = tl.minimum(tl.maximum(weights * blocks, weight * FEWEST), weight * most)
    return tl.sum(tl.where(is_head, dealt, 0), 0) - total * weight


@triton.jit
def excess_of_each(blocks, weights, is_head, total, most, FEWEST: tl.constexpr):
    """`excess` for the weight of each head, of few."""
    own = weights[:, None]
    dealt = tl.minimum(tl.maximum(weights[None, :] * blocks, own * FEWEST), own * most)
    return tl.sum(tl.where(is_head[None, :], dealt, 0), 1) - total * weights
