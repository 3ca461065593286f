# SPDX-License-Identifier: Apache-2.0
"""Splits a layer's head blocks among its heads by what a prompt attends; see `budgets.adaptive`."""

import torch
import triton
import triton.language as tl

from headkv_vllm.budgets.adaptive import SAFEGUARD, split_layer_plain
from headkv_vllm.budgets.allotment import Bounds
from headkv_vllm.kernels.chunks import Chunks, completed, launch_arguments, prompt_of
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.rows import HEADER, DeviceRows, full_blocks_of
from headkv_vllm.kernels.water_filling import dealt_at_level, excess_of_each, in_proportion
from headkv_vllm.selection import count_best_plain

TILE = 256
EVEN = tl.constexpr(SAFEGUARD.numerator)
BY_COUNT = tl.constexpr(SAFEGUARD.denominator - SAFEGUARD.numerator)


def split_layers(
    scores: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    layer: int,
    decided: Decided,
    min_blocks: int,
) -> None:
    """Of each prompt that the step completes under an adaptive policy, split `layer`.

    scores: [num_chunks, H, longest] float32, >= 0, see `position_scores`. Writes what each head
    gets to `decided.counts`, and where its head blocks begin to `rows.first`, which knows the
    layer's sum and place.
    """
    _split[(scores.shape[0],)](
        *launch_arguments(rows, chunks),
        rows.first,
        scores,
        decided.adaptive,
        decided.counts,
        chunks.longest,
        layer,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        HEAD_LANES=triton.next_power_of_2(rows.num_kv_heads),
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        FEWEST=min_blocks,
        TILE=TILE,
    )


def split_layers_plain(
    scores: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    layer: int,
    decided: Decided,
    min_blocks: int,
) -> None:
    """Plain twin of `split_layers`."""
    own = slice(layer * rows.num_kv_heads, (layer + 1) * rows.num_kv_heads)
    requests = chunks.requests.tolist()
    for prompt, one in enumerate(completed(rows, chunks)):
        if one is None or not decided.adaptive[one.row.policy_index]:
            continue
        begin, end = one.first[own.start], one.first[own.stop]
        num_best = (end - begin) * rows.block_size
        counts = count_best_plain(scores[prompt, :, : one.num_candidates].cpu(), num_best)
        bounds = Bounds(min_blocks, one.num_candidates // rows.block_size)
        split = torch.from_numpy(split_layer_plain(counts, end - begin, bounds)).int()
        decided.counts[one.row.compressed_blocks[0], own] = split.to(rows.first.device)
        places = begin + split.cumsum(0).int()
        rows.first[requests[prompt], own.start + 1 : own.stop + 1] = places.to(rows.first.device)


@triton.jit(do_not_specialize=["width", "longest", "layer"])
def _split(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    first,
    scores,
    adaptive,
    decided,
    longest,
    layer,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FEWEST: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each prompt."""
    request, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, 1, WINDOW
    )
    if (window_start < 0) | (tl.load(adaptive + tl.load(row + 2)) == 0):
        return
    most = full_blocks_of(tl.load(row), WINDOW, BLOCK_SIZE)
    size = most * BLOCK_SIZE
    dealt = first + request.to(tl.int64) * (NUM_HEADS + 1) + layer * NUM_KV_HEADS
    begin = tl.load(dealt)
    total = tl.load(dealt + NUM_KV_HEADS) - begin
    num_best = total * BLOCK_SIZE
    lane = tl.arange(0, HEAD_LANES)
    is_head = lane < NUM_KV_HEADS
    own = scores + (tl.program_id(0).to(tl.int64) * NUM_KV_HEADS + lane) * longest
    # Numbers that are not negative are in the order of their bits.
    low, high = tl.full((), 0, tl.int32), tl.full((), 0x7F800001, tl.int32)
    while high - low > 1:  # the highest score that at least `num_best` pairs reach
        middle = low + (high - low) // 2
        reaches = tl.sum(_counts_from(own, is_head, size, middle, HEAD_LANES, TILE), 0) >= num_best
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    above = _counts_from(own, is_head, size, low + 1, HEAD_LANES, TILE)
    equal = _counts_from(own, is_head, size, low, HEAD_LANES, TILE) - above
    counts = above + in_proportion(equal, is_head, num_best - tl.sum(above, 0))

    weights = EVEN * num_best.to(tl.int64) + BY_COUNT * NUM_KV_HEADS * counts
    weights = tl.where(is_head, weights, 0)
    total, most = total.to(tl.int64), most.to(tl.int64)
    is_capped = excess_of_each(most, weights, is_head, total, most, FEWEST) <= 0
    is_lifted = excess_of_each(FEWEST, weights, is_head, total, most, FEWEST) >= 0
    above_all = tl.max(weights, 0) + 1
    first_capped = tl.min(tl.where(is_head & is_capped, weights, above_all), 0)
    last_lifted = tl.max(tl.where(is_head & is_lifted, weights, 0), 0)
    split = dealt_at_level(weights, is_head, first_capped, last_lifted, total, most, FEWEST)
    block = tl.load(row + HEADER).to(tl.int64)
    record = decided + block * NUM_HEADS + layer * NUM_KV_HEADS
    tl.store(record + lane, split.to(tl.int32), mask=is_head)
    tl.store(dealt + 1 + lane, begin + tl.cumsum(split, 0).to(tl.int32), mask=is_head)


@triton.jit
def _counts_from(scores, is_head, size, least, HEAD_LANES: tl.constexpr, TILE: tl.constexpr):
    """How many of each head's `size` scores have bits of at least `least`, int64."""
    found = tl.zeros((HEAD_LANES,), tl.int64)
    for begin in range(0, size, TILE):
        position = begin + tl.arange(0, TILE)
        is_there = is_head[:, None] & (position < size)[None, :]
        bits = tl.load(scores[:, None] + position[None, :], mask=is_there, other=0.0)
        is_counted = is_there & (bits.to(tl.int32, bitcast=True) >= least)
        found += tl.sum(is_counted.to(tl.int64), 1)
    return found
