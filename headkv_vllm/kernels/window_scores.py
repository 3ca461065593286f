# SPDX-License-Identifier: Apache-2.0
"""The attention that a prompt's window pays to each of its positions; see `headkv_vllm.selection`.

Twice over the prompt's keys, so that no logits are ever stored: the first time for the largest
logit and the sum of exponentials of each query, the second time for what is left of them.
"""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.chunks import Chunks, completed, launch_arguments, prompt_of
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.online_softmax import capped
from headkv_vllm.kernels.rows import HEADER, DeviceRows
from headkv_vllm.selection import Reduction, window_attention_plain

TILE = 128
CHANNELS = 64
"""Of queries and keys, that are multiplied at a time."""


def window_scores(
    query: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    inputs: LayerInputs,
    reduction: Reduction,
) -> torch.Tensor:
    """query: [num_tokens, num_heads, head_size], of the step.

    Returns [num_chunks, H, longest] float32: for each KV head and each position before the
    window the mean, or the maximum, over the window's queries and the head's query heads. 0 from
    the window on, and where no prompt is completed.
    """
    _, num_heads, head_size = query.shape
    group_size, num_chunks = num_heads // rows.num_kv_heads, len(chunks.requests)
    num_pairs, num_tiles = num_chunks * rows.num_kv_heads, triton.cdiv(chunks.longest, TILE)
    query_lanes = max(16, triton.next_power_of_2(group_size * rows.window))
    shape = (num_pairs, num_tiles, query_lanes)
    largest, total = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    scores = query.new_zeros((num_pairs, chunks.longest), dtype=torch.float32)
    arguments = (
        *launch_arguments(rows, chunks),
        query,
        query.stride(0),
        query.stride(1),
        inputs.head_blocks,
        largest,
        total,
        scores,
        chunks.longest,
        inputs.layer,
        inputs.scale,
        inputs.logits_soft_cap,
        inputs.key_scale,
    )
    sizes = {
        "NUM_KV_HEADS": rows.num_kv_heads,
        "NUM_HEADS": rows.num_heads_of_all_layers,
        "GROUP_SIZE": group_size,
        "QUERY_LANES": query_lanes,
        "HEAD_SIZE": head_size,
        "CHANNELS": min(CHANNELS, triton.next_power_of_2(head_size)),
        "WINDOW": rows.window,
        "BLOCK_SIZE": rows.block_size,
        "TILE": TILE,
        "HAS_SOFT_CAP": inputs.logits_soft_cap > 0,
        "TAKES_MAX": reduction == "max",
    }
    grid = (num_pairs, num_tiles)
    _visit_keys[grid](*arguments, IS_SECOND=False, **sizes)
    _add_tiles[(num_pairs,)](
        *launch_arguments(rows, chunks),
        largest,
        total,
        num_tiles,
        NUM_KV_HEADS=rows.num_kv_heads,
        QUERY_LANES=query_lanes,
        WINDOW=rows.window,
        TILE=TILE,
    )
    _visit_keys[grid](*arguments, IS_SECOND=True, **sizes)
    return scores.view(num_chunks, rows.num_kv_heads, chunks.longest)


def window_scores_plain(
    query: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    inputs: LayerInputs,
    reduction: Reduction,
) -> torch.Tensor:
    """Plain twin of `window_scores`."""
    shape = (len(chunks.requests), rows.num_kv_heads, chunks.longest)
    scores = torch.zeros(shape, dtype=torch.float32)
    head_size = query.shape[2]
    for prompt, one in enumerate(completed(rows, chunks)):
        if one is None:
            continue
        first = inputs.layer * rows.num_kv_heads
        heads = torch.arange(first, first + rows.num_kv_heads)
        blocks = torch.tensor(one.row.blocks)[:, None] * rows.num_heads_of_all_layers + heads
        entries = inputs.head_blocks.cpu()[blocks].transpose(0, 1).flatten(1, 2).float()
        keys = entries[..., :head_size].transpose(1, 2) * inputs.key_scale.cpu()
        window = query[one.window_start : one.window_start + rows.window].cpu().float()
        length, scale = one.row.num_prompt_tokens, inputs.scale
        attention = window_attention_plain(
            window, [keys[..., :length]], length, scale, inputs.logits_soft_cap, reduction
        )
        scores[prompt, :, : length - rows.window] = attention[:, : -rows.window]
    return scores.to(query.device)


@triton.jit(do_not_specialize=["width", "longest", "layer"])
def _visit_keys(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    query,
    query_stride,
    query_head_stride,
    head_blocks,
    largest,
    total,
    scores,
    longest,
    layer,
    scale,
    logits_soft_cap,
    key_scale,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    QUERY_LANES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    TAKES_MAX: tl.constexpr,
    IS_SECOND: tl.constexpr,
):
    """One program for each (prompt, KV head) and tile of keys."""
    _, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, NUM_KV_HEADS, WINDOW
    )
    length = tl.load(row)
    tile = tl.program_id(1)
    if (window_start < 0) | (tile * TILE >= length):
        return
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    lane = tl.arange(0, QUERY_LANES)
    place_in_window, query_head = lane % WINDOW, kv_head * GROUP_SIZE + lane // WINDOW
    is_query = lane < GROUP_SIZE * WINDOW
    token = (window_start + place_in_window).to(tl.int64)
    queries = query + token * query_stride + query_head * query_head_stride
    position = tile * TILE + tl.arange(0, TILE)
    is_key = position < length
    column = HEADER + tl.load(row + 1) + position // BLOCK_SIZE
    block = tl.load(row + column, mask=is_key, other=0).to(tl.int64)
    head_block = block * NUM_HEADS + layer * NUM_KV_HEADS + kv_head
    entry = (head_block * BLOCK_SIZE + position % BLOCK_SIZE) * (2 * HEAD_SIZE)
    logits = tl.zeros((QUERY_LANES, TILE), tl.float32)
    for begin in tl.range(0, HEAD_SIZE, CHANNELS, num_stages=1):
        channel = begin + tl.arange(0, CHANNELS)
        is_channel = channel < HEAD_SIZE
        is_used = is_query[:, None] & is_channel[None, :]
        q = tl.load(queries[:, None] + channel[None, :], mask=is_used, other=0.0)
        k = tl.load(
            head_blocks + entry[None, :] + channel[:, None],
            mask=is_channel[:, None] & is_key[None, :],
            other=0.0,
        )
        logits = tl.dot(q, k.to(q.dtype), logits, input_precision="ieee")
    logits *= scale * tl.load(key_scale)
    logits = capped(logits, logits_soft_cap, HAS_SOFT_CAP)
    is_past = position[None, :] <= (length - WINDOW + place_in_window)[:, None]
    logits = tl.where(is_key[None, :] & is_past, logits, float("-inf"))

    pair = tl.program_id(0).to(tl.int64)
    statistics = (pair * tl.num_programs(1) + tile) * QUERY_LANES + lane
    if IS_SECOND:
        first_tile = pair * tl.num_programs(1) * QUERY_LANES + lane
        most, whole = tl.load(largest + first_tile), tl.load(total + first_tile)
        attention = tl.exp(logits - most[:, None]) / whole[:, None]
        attention = tl.where(is_query[:, None], attention, 0.0)
        if TAKES_MAX:
            reduced = tl.max(attention, 0)
        else:
            reduced = tl.sum(attention, 0) / (GROUP_SIZE * WINDOW)
        is_candidate = position < length - WINDOW
        tl.store(scores + pair * longest + position, reduced, mask=is_candidate)
    else:
        # The window's own first tile may hold nothing that an early query of it can see.
        most = tl.max(logits, 1)
        visible = tl.where(most[:, None] == float("-inf"), 0.0, tl.exp(logits - most[:, None]))
        tl.store(largest + statistics, most)
        tl.store(total + statistics, tl.sum(visible, 1))


@triton.jit(do_not_specialize=["width", "num_tiles"])
def _add_tiles(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    largest,
    total,
    num_tiles,
    NUM_KV_HEADS: tl.constexpr,
    QUERY_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
):
    """Puts the statistics of all keys where those of the first tile are."""
    _, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, NUM_KV_HEADS, WINDOW
    )
    if window_start < 0:
        return
    first = tl.program_id(0).to(tl.int64) * num_tiles * QUERY_LANES + tl.arange(0, QUERY_LANES)
    most, whole = tl.load(largest + first), tl.load(total + first)
    for tile in range(1, tl.cdiv(tl.load(row), TILE)):
        tile_most = tl.load(largest + first + tile * QUERY_LANES)
        tile_whole = tl.load(total + first + tile * QUERY_LANES)
        new_most = tl.maximum(most, tile_most)
        whole = whole * tl.exp(most - new_most) + tile_whole * tl.exp(tile_most - new_most)
        most = new_most
    tl.store(largest + first, most)
    tl.store(total + first, whole)
