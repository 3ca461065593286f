# SPDX-License-Identifier: Apache-2.0
"""Deals the compressed head blocks of each row out to its heads; see `budgets.allotment`."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.budgets.allotment import (
    Bounds,
    FloatArray,
    deal_by_weight,
    integer_weights,
)
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.rows import full_blocks_of, row_of


@dataclass(frozen=True)
class HeadWeights:
    """What each policy's head blocks are in proportion to.

    by_head: [num_policies, L*H] int64, positive. ascending: the same, sorted.
    """

    by_head: torch.Tensor
    ascending: torch.Tensor

    @classmethod
    def of(cls, shares: FloatArray, device: torch.device) -> "HeadWeights":
        """shares: [num_policies, L*H], >= 0 and in no policy all zero; see `policy.Shares`."""
        by_head = torch.from_numpy(integer_weights(shares)).to(device)
        return cls(by_head, by_head.sort(1).values)


def first_head_blocks(
    rows: torch.Tensor,
    weights: HeadWeights,
    window: int,
    block_size: int,
    min_blocks: int,
    buffers: Buffers,
) -> torch.Tensor:
    """Where each head's head blocks begin among those of its request.

    rows: [num_reqs, width] int32. Returns [num_reqs, L*H + 1] int32; see `DeviceRows.first`;
    in `buffers`.
    """
    num_reqs, num_heads = len(rows), weights.by_head.shape[1]
    first = buffers.take("first", num_reqs, num_heads + 1)
    _deal_out[(num_reqs,)](
        rows,
        rows.stride(0),
        weights.by_head,
        weights.ascending,
        first,
        NUM_HEADS=num_heads,
        LANES=triton.next_power_of_2(num_heads),
        STEPS=num_heads.bit_length() + 1,
        WINDOW=window,
        BLOCK_SIZE=block_size,
        FEWEST=min_blocks,
    )
    return first


def first_head_blocks_plain(
    rows: torch.Tensor,
    weights: HeadWeights,
    window: int,
    block_size: int,
    min_blocks: int,
    buffers: Buffers,
) -> torch.Tensor:
    """Plain twin of `first_head_blocks`."""
    num_heads = weights.by_head.shape[1]
    first = torch.zeros((len(rows), num_heads + 1), dtype=torch.int32)
    for request, (length, num_blocks, policy) in enumerate(rows[:, :3].tolist()):
        if num_blocks:
            bounds = Bounds(min_blocks, (length - window) // block_size)
            by_head = weights.by_head[policy].cpu().numpy()
            dealt = deal_by_weight(by_head, num_blocks * num_heads, bounds)
            first[request, 1:] = torch.from_numpy(dealt).cumsum(0)
    return first.to(rows.device)


@triton.jit
def _deal_out(
    rows,
    width,
    by_head,
    ascending,
    first,
    NUM_HEADS: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FEWEST: tl.constexpr,
):
    """One program for each request: the same water-filling as `deal_by_weight`, in int64."""
    request = tl.program_id(0)
    row = row_of(rows, request, width)
    num_blocks = tl.load(row + 1).to(tl.int64)
    most = full_blocks_of(tl.load(row), WINDOW, BLOCK_SIZE).to(tl.int64)
    policy = tl.load(row + 2)
    lanes = tl.arange(0, LANES)
    is_head = lanes < NUM_HEADS
    own = first + request.to(tl.int64) * (NUM_HEADS + 1)
    tl.store(own, 0)
    weights = tl.load(by_head + policy * NUM_HEADS + lanes, mask=is_head, other=0)
    total = num_blocks * NUM_HEADS
    sorted_weights = ascending + policy * NUM_HEADS

    # Of the heaviest heads all are held down to the most, of the lightest all up to the fewest.
    capped = _first_below(
        1, most, sorted_weights, weights, is_head, total, most, NUM_HEADS, STEPS, FEWEST
    )
    lifted = _first_below(
        0, FEWEST, sorted_weights, weights, is_head, total, most, NUM_HEADS, STEPS, FEWEST
    )
    heaviest = tl.load(sorted_weights + NUM_HEADS - 1)
    least_capped = tl.load(sorted_weights + tl.minimum(capped, NUM_HEADS - 1))
    first_capped = tl.where(capped < NUM_HEADS, least_capped, heaviest + 1)
    last_lifted = tl.where(lifted > 0, tl.load(sorted_weights + tl.maximum(lifted - 1, 0)), 0)
    is_free = is_head & (weights > last_lifted) & (weights < first_capped)
    dealt = tl.where(weights >= first_capped, most, FEWEST)
    left = total - tl.sum(tl.where(is_head & (is_free == 0), dealt, 0), 0)
    free_weights = tl.where(is_free, weights, 0)
    all_free = tl.maximum(tl.sum(free_weights, 0), 1)
    dealt = tl.where(is_free, free_weights * left // all_free, dealt)
    remainders = tl.where(is_free, free_weights * left % all_free, -1)
    left -= tl.sum(tl.where(is_free, dealt, 0), 0)
    left = tl.where(tl.sum(is_free.to(tl.int32), 0) > 0, left, 0)
    dealt += _has_one_more(remainders, left, all_free)
    dealt = tl.where(is_head & (num_blocks > 0), dealt, 0)
    tl.store(own + 1 + lanes, tl.cumsum(dealt, 0).to(tl.int32), mask=is_head)


@triton.jit
def _excess(blocks, weight, weights, is_head, total, most, FEWEST: tl.constexpr):
    """(blocks dealt - total) * weight, at the level where a head of `weight` has `blocks`."""
    dealt = tl.minimum(tl.maximum(weights * blocks, weight * FEWEST), weight * most)
    return tl.sum(tl.where(is_head, dealt, 0), 0) - total * weight


@triton.jit
def _first_below(
    bound,
    blocks,
    sorted_weights,
    weights,
    is_head,
    total,
    most,
    NUM_HEADS: tl.constexpr,
    STEPS: tl.constexpr,
    FEWEST: tl.constexpr,
):
    """The place in `sorted_weights` of the first whose `_excess` is below `bound`, by halving."""
    low, high = tl.full((), 0, tl.int32), tl.full((), NUM_HEADS, tl.int32)
    for _ in range(STEPS):
        middle = (low + high) // 2
        weight = tl.load(sorted_weights + tl.minimum(middle, NUM_HEADS - 1))
        is_below = _excess(blocks, weight, weights, is_head, total, most, FEWEST) < bound
        is_open = low < high
        high = tl.where(is_open & is_below, middle, high)
        low = tl.where(is_open & (is_below == 0), middle + 1, low)
    return low


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
