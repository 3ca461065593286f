# SPDX-License-Identifier: Apache-2.0
"""Which positions of a prompt each head keeps: those of the highest scores."""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.chunks import Chunks, completed, launch_arguments, prompt_of
from headkv_vllm.kernels.rows import DeviceRows, full_blocks_of
from headkv_vllm.selection import top_positions_plain

TILE = 1024


def kept_positions(
    scores: torch.Tensor, rows: DeviceRows, chunks: Chunks, layer: int
) -> torch.Tensor:
    """The positions of the highest scores of each head, as many as it has entries, ascending.

    scores: [num_chunks, H, longest] float32, >= 0, see `position_scores`. Returns the same shape
    in int32, 0 beyond a head's entries. Of equal scores the earlier positions are kept.
    """
    positions = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    _select[(scores.shape[0] * rows.num_kv_heads,)](
        *launch_arguments(rows, chunks),
        rows.first,
        scores,
        positions,
        chunks.longest,
        layer,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        TILE=TILE,
    )
    return positions


def kept_positions_plain(
    scores: torch.Tensor, rows: DeviceRows, chunks: Chunks, layer: int
) -> torch.Tensor:
    """Plain twin of `kept_positions`."""
    positions = torch.zeros(scores.shape, dtype=torch.int32)
    for prompt, one in enumerate(completed(rows, chunks)):
        if one is None:
            continue
        own = slice(layer * rows.num_kv_heads, (layer + 1) * rows.num_kv_heads)
        num_kept = torch.tensor(one.first).diff()[own] * rows.block_size
        heads, kept = top_positions_plain(scores[prompt, :, : one.num_candidates].cpu(), num_kept)
        for head, entries in enumerate(num_kept.tolist()):
            positions[prompt, head, :entries] = kept[heads == head].int()
    return positions.to(scores.device)


@triton.jit(do_not_specialize=["width", "longest", "layer"])
def _select(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    first,
    scores,
    positions,
    longest,
    layer,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each (prompt, KV head)."""
    request, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, NUM_KV_HEADS, WINDOW
    )
    if window_start < 0:
        return
    size = full_blocks_of(tl.load(row), WINDOW, BLOCK_SIZE) * BLOCK_SIZE
    head = layer * NUM_KV_HEADS + tl.program_id(0) % NUM_KV_HEADS
    dealt = first + request.to(tl.int64) * (NUM_HEADS + 1) + head
    num_kept = (tl.load(dealt + 1) - tl.load(dealt)) * BLOCK_SIZE
    own = tl.program_id(0).to(tl.int64) * longest
    # Numbers that are not negative are in the order of their bits.
    low, high = tl.full((), 0, tl.int32), tl.full((), 0x7F800001, tl.int32)
    while high - low > 1:  # the highest score that at least `num_kept` positions reach
        middle = low + (high - low) // 2
        reaches = _count_from(scores + own, size, middle, TILE) >= num_kept
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    num_equal_left = num_kept - _count_from(scores + own, size, low + 1, TILE)
    num_written = 0
    for begin in range(0, size, TILE):
        position = begin + tl.arange(0, TILE)
        bits = tl.load(scores + own + position, mask=position < size, other=0.0)
        bits = bits.to(tl.int32, bitcast=True)
        is_equal = ((bits == low) & (position < size)).to(tl.int32)
        is_taken = is_equal * (tl.cumsum(is_equal, 0) <= num_equal_left).to(tl.int32)
        is_kept = is_taken + ((bits > low) & (position < size)).to(tl.int32)
        place = num_written + tl.cumsum(is_kept, 0) - 1
        tl.store(positions + own + place, position, mask=is_kept > 0)
        num_written += tl.sum(is_kept, 0)
        num_equal_left -= tl.sum(is_taken, 0)


@triton.jit
def _count_from(scores, size, least, TILE: tl.constexpr):
    """How many of `size` scores have bits of at least `least`."""
    found = tl.zeros((TILE,), tl.int32)
    for begin in range(0, size, TILE):
        position = begin + tl.arange(0, TILE)
        bits = tl.load(scores + position, mask=position < size, other=0.0)
        found += ((bits.to(tl.int32, bitcast=True) >= least) & (position < size)).to(tl.int32)
    return tl.sum(found, 0)
