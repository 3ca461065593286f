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
    split_evenly,
)
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.rows import HEADER, full_blocks_of, row_of
from headkv_vllm.kernels.water_filling import dealt_at_level, excess


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


@dataclass(frozen=True)
class Sizes:
    """Of a worker's heads and of the settings, see `Settings`."""

    num_kv_heads: int
    window: int
    block_size: int
    min_blocks: int


def first_head_blocks(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    weights: HeadWeights,
    decided: Decided,
    sizes: Sizes,
    buffers: Buffers,
) -> torch.Tensor:
    """Where each head's head blocks begin among those of its request.

    rows: [num_reqs, width] int32. query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs]
    int32, up to the end of this step. Of a prompt that is to decide and has not, each layer's head
    blocks are spread evenly. Returns [num_reqs, L*H + 1] int32; see `DeviceRows.first`; in
    `buffers`.
    """
    num_reqs, num_heads = len(rows), weights.by_head.shape[1]
    first = buffers.take("first", num_reqs, num_heads + 1)
    layer_lanes = triton.next_power_of_2(num_heads // sizes.num_kv_heads)
    _deal_out[(num_reqs,)](
        rows,
        rows.stride(0),
        query_start_loc,
        seq_lens,
        weights.by_head,
        weights.ascending,
        decided.adaptive,
        decided.counts,
        first,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=sizes.num_kv_heads,
        LAYER_LANES=layer_lanes,
        HEAD_LANES=triton.next_power_of_2(sizes.num_kv_heads),
        STEPS=num_heads.bit_length() + 1,
        WINDOW=sizes.window,
        BLOCK_SIZE=sizes.block_size,
        FEWEST=sizes.min_blocks,
    )
    return first


def first_head_blocks_plain(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    weights: HeadWeights,
    decided: Decided,
    sizes: Sizes,
    buffers: Buffers,
) -> torch.Tensor:
    """Plain twin of `first_head_blocks`."""
    num_heads = weights.by_head.shape[1]
    first = torch.zeros((len(rows), num_heads + 1), dtype=torch.int32)
    num_computed = (seq_lens - query_start_loc.diff()).tolist()
    for request, (length, num_blocks, policy, block) in enumerate(rows[:, :4].tolist()):
        if not num_blocks:
            continue
        bounds = Bounds(sizes.min_blocks, (length - sizes.window) // sizes.block_size)
        by_head = weights.by_head[policy].cpu().numpy()
        dealt = torch.from_numpy(deal_by_weight(by_head, num_blocks * num_heads, bounds))
        if decided.adaptive[policy]:
            by_layer = split_evenly(dealt.view(-1, sizes.num_kv_heads).numpy())
            has_decided = num_computed[request] >= length
            dealt = decided.counts[block] if has_decided else torch.from_numpy(by_layer).ravel()
        first[request, 1:] = dealt.cumsum(0)
    return first.to(rows.device)


@triton.jit(do_not_specialize=["width"])
def _deal_out(
    rows,
    width,
    query_start_loc,
    seq_lens,
    by_head,
    ascending,
    adaptive,
    decided,
    first,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    LAYER_LANES: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    STEPS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FEWEST: tl.constexpr,
):
    """One program for each request: the same water-filling as `deal_by_weight`, in int64."""
    request = tl.program_id(0)
    row = row_of(rows, request, width)
    length, num_blocks = tl.load(row), tl.load(row + 1).to(tl.int64)
    most = full_blocks_of(length, WINDOW, BLOCK_SIZE).to(tl.int64)
    policy = tl.load(row + 2)
    lanes = tl.arange(0, LAYER_LANES * HEAD_LANES)
    layer, kv_head = lanes // HEAD_LANES, lanes % HEAD_LANES
    head = layer * NUM_KV_HEADS + kv_head
    is_head = (kv_head < NUM_KV_HEADS) & (head < NUM_HEADS)
    own = first + request.to(tl.int64) * (NUM_HEADS + 1)
    tl.store(own, 0)
    weights = tl.load(by_head + policy * NUM_HEADS + head, mask=is_head, other=0)
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
    dealt = dealt_at_level(weights, is_head, first_capped, last_lifted, total, most, FEWEST)

    by_layer = tl.reshape(dealt, (LAYER_LANES, HEAD_LANES))
    of_layer = tl.sum(by_layer, 1)[:, None] + tl.zeros_like(by_layer)
    of_layer = tl.reshape(of_layer, (LAYER_LANES * HEAD_LANES,))
    evenly = of_layer // NUM_KV_HEADS + (kv_head < of_layer % NUM_KV_HEADS).to(tl.int64)
    num_new = tl.load(query_start_loc + request + 1) - tl.load(query_start_loc + request)
    is_adaptive = (num_blocks > 0) & (tl.load(adaptive + policy) > 0)
    has_decided = is_adaptive & (tl.load(seq_lens + request) - num_new >= length)
    # The record of block 0 stands for those of requests that have none, and is not used.
    block = tl.where(has_decided, tl.load(row + tl.where(has_decided, HEADER, 0)), 0)
    counts = tl.load(decided + block.to(tl.int64) * NUM_HEADS + head, mask=is_head, other=0)
    dealt = tl.where(is_adaptive, tl.where(has_decided, counts.to(tl.int64), evenly), dealt)

    dealt = tl.where(is_head & (num_blocks > 0), dealt, 0)
    tl.store(own + 1 + head, tl.cumsum(dealt, 0).to(tl.int32), mask=is_head)


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
    """The place in `sorted_weights` of the first whose `excess` is below `bound`, by halving."""
    low, high = tl.full((), 0, tl.int32), tl.full((), NUM_HEADS, tl.int32)
    for _ in range(STEPS):
        middle = (low + high) // 2
        weight = tl.load(sorted_weights + tl.minimum(middle, NUM_HEADS - 1))
        is_below = excess(blocks, weight, weights, is_head, total, most, FEWEST) < bound
        is_open = low < high
        high = tl.where(is_open & is_below, middle, high)
        low = tl.where(is_open & (is_below == 0), middle + 1, low)
    return low
