# SPDX-License-Identifier: Apache-2.0
"""How much each KV head wants each position of a prompt; see `headkv_vllm.selection`."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.config import Settings
from headkv_vllm.kernels.chunks import Chunks, completed, launch_arguments, prompt_of
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import HEADER, DeviceRows, full_blocks_of
from headkv_vllm.selection import pool_plain, recency_plain, value_norms

TILE = 256


@dataclass(frozen=True)
class Wanted:
    """settings: how attention is pooled. recent: [num_policies] int32, 1 for policies that keep
    the first positions and the last, whatever is attended.
    """

    settings: Settings
    recent: torch.Tensor


def position_scores(
    attention: torch.Tensor, rows: DeviceRows, chunks: Chunks, inputs: LayerInputs, wanted: Wanted
) -> torch.Tensor:
    """attention: [num_chunks, H, longest] float32, see `window_scores`.

    Returns the same shape, >= 0 and finite: 0 from position F*block_size on, and where no prompt
    is completed.
    """
    settings = wanted.settings
    scores = torch.zeros_like(attention)
    head_size = inputs.head_blocks.shape[2] // 2
    grid = (attention.shape[0] * rows.num_kv_heads, triton.cdiv(chunks.longest, TILE))
    _score[grid](
        *launch_arguments(rows, chunks),
        attention,
        inputs.head_blocks,
        wanted.recent,
        scores,
        chunks.longest,
        inputs.layer,
        settings.sink,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        HEAD_SIZE=head_size,
        HEAD_LANES=triton.next_power_of_2(head_size),
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        KERNEL_SIZE=settings.kernel_size,
        TAKES_MAX=settings.pooling == "max",
        HAS_VALUE_NORM=settings.value_norm,
        TILE=TILE,
    )
    return scores


def position_scores_plain(
    attention: torch.Tensor, rows: DeviceRows, chunks: Chunks, inputs: LayerInputs, wanted: Wanted
) -> torch.Tensor:
    """Plain twin of `position_scores`."""
    scores, settings = torch.zeros_like(attention), wanted.settings
    for prompt, one in enumerate(completed(rows, chunks)):
        if one is None:
            continue
        size, length = one.num_candidates, one.row.num_prompt_tokens
        if wanted.recent[one.row.policy_index]:
            scores[prompt, :, :size] = recency_plain(size, settings.sink)
            continue
        before_window = attention[prompt, :, : length - rows.window].cpu().nan_to_num(0.0)
        pooled = pool_plain(before_window, settings)[:, :size]
        for head in range(rows.num_kv_heads if settings.value_norm else 0):
            own = inputs.layer * rows.num_kv_heads + head
            blocks = [block * rows.num_heads_of_all_layers + own for block in one.row.blocks]
            value = inputs.head_blocks[blocks].flatten(0, 1).cpu()[:size].chunk(2, -1)[1]
            pooled[head] *= value_norms(value)
        scores[prompt, :, :size] = pooled
    return scores


@triton.jit(do_not_specialize=["width", "longest", "layer"])
def _score(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    attention,
    head_blocks,
    recent,
    scores,
    longest,
    layer,
    sink,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    TAKES_MAX: tl.constexpr,
    HAS_VALUE_NORM: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each (prompt, KV head) and tile of positions."""
    _, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, NUM_KV_HEADS, WINDOW
    )
    length = tl.load(row)
    num_candidates = full_blocks_of(length, WINDOW, BLOCK_SIZE) * BLOCK_SIZE
    begin = tl.program_id(1) * TILE
    if (window_start < 0) | (begin >= num_candidates):
        return
    position = begin + tl.arange(0, TILE)
    is_candidate = position < num_candidates
    own = tl.program_id(0).to(tl.int64) * longest
    pooled = tl.zeros((TILE,), tl.float32)
    for step in range(KERNEL_SIZE):
        near = position + step - KERNEL_SIZE // 2
        is_there = (near >= 0) & (near < length - WINDOW)
        value = tl.load(attention + own + near, mask=is_there, other=0.0)
        value = tl.where(value == value, value, 0.0)  # a broken model's scores can be compared too
        pooled = tl.maximum(pooled, value) if TAKES_MAX else pooled + value / KERNEL_SIZE
    if HAS_VALUE_NORM:
        column = HEADER + tl.load(row + 1) + position // BLOCK_SIZE
        block = tl.load(row + column, mask=is_candidate, other=0).to(tl.int64)
        head_block = block * NUM_HEADS + layer * NUM_KV_HEADS + tl.program_id(0) % NUM_KV_HEADS
        entry = (head_block * BLOCK_SIZE + position % BLOCK_SIZE) * (2 * HEAD_SIZE) + HEAD_SIZE
        channel = tl.arange(0, HEAD_LANES)
        v = tl.load(
            head_blocks + entry[:, None] + channel[None, :],
            mask=is_candidate[:, None] & (channel < HEAD_SIZE)[None, :],
            other=0.0,
        )
        pooled *= tl.sum(tl.abs(v.to(tl.float32)), 1)
    is_recent = tl.load(recent + tl.load(row + 2)) > 0
    recency = tl.where(position < sink, num_candidates, position).to(tl.float32)
    tl.store(scores + own + position, tl.where(is_recent, recency, pooled), mask=is_candidate)
