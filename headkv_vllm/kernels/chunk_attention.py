# SPDX-License-Identifier: Apache-2.0
"""Causal attention of chunks: of prompts over blocks of tokens, of what follows them by head."""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.chunks import Chunks, follows_compressed, launch_arguments
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.online_softmax import attend_entries, attended_plain, key_tile
from headkv_vllm.kernels.rows import (
    DeviceRows,
    kept_blocks_of,
    replaced_blocks_of,
    row_of,
)

MOST_QUERIES = 128
"""That a program holds: tokens, times the query heads of a KV head."""
QUERY_BYTES = 32 << 10
"""Of the queries that a program holds, at most; see `KEY_BYTES`."""


def attend_chunks(
    query: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    inputs: LayerInputs,
    output: torch.Tensor,
    only_by_head: bool = False,
) -> None:
    """query, output: [num_tokens, num_heads, head_size], of the whole step.

    Writes the tokens of `chunks.requests`. Each attends what there is up to its own position: all
    positions, or of a compressed prompt what its head keeps, and what follows.
    only_by_head: leave out tokens that attend all positions, see `prompt_tables`.
    """
    _, num_heads, head_size = query.shape
    group_size = num_heads // rows.num_kv_heads
    head_lanes, group_lanes = triton.next_power_of_2(head_size), triton.next_power_of_2(group_size)
    most_queries = min(MOST_QUERIES, QUERY_BYTES // (head_lanes * query.element_size()))
    query_tile = max(1, most_queries // group_lanes)
    grid = (
        len(chunks.requests) * rows.num_kv_heads,
        triton.cdiv(chunks.most_new_tokens, query_tile),
    )
    _attend_chunks[grid](
        *launch_arguments(rows, chunks),
        rows.first,
        query,
        query.stride(0),
        query.stride(1),
        inputs.head_blocks,
        output,
        output.stride(0),
        output.stride(1),
        inputs.layer,
        inputs.scale,
        inputs.logits_soft_cap,
        inputs.key_scale,
        inputs.value_scale,
        ONLY_BY_HEAD=only_by_head,
        HAS_SOFT_CAP=inputs.logits_soft_cap > 0,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        GROUP_SIZE=group_size,
        QUERY_TILE=query_tile,
        QUERY_LANES=max(16, query_tile * group_lanes),
        HEAD_SIZE=head_size,
        HEAD_LANES=head_lanes,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        KEY_TILE=key_tile(query),
    )


def attend_chunks_plain(
    query: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    inputs: LayerInputs,
    output: torch.Tensor,
    only_by_head: bool = False,
) -> None:
    """Plain twin of `attend_chunks`."""
    starts, ends = chunks.query_start_loc.tolist(), chunks.seq_lens.tolist()
    for request in chunks.requests.tolist():
        if only_by_head and not follows_compressed(rows, chunks, request):
            continue
        for token in range(starts[request], starts[request + 1]):
            end = ends[request] - (starts[request + 1] - token) + 1
            output[token] = attended_plain(query[token], rows, request, end, inputs)


@triton.jit(do_not_specialize=["width", "layer"])
def _attend_chunks(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    first,
    query,
    query_stride,
    query_head_stride,
    head_blocks,
    output,
    output_stride,
    output_head_stride,
    layer,
    scale,
    logits_soft_cap,
    key_scale,
    value_scale,
    ONLY_BY_HEAD: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    QUERY_LANES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
):
    """One program for each (prompt, KV head) and tile of its new tokens."""
    request = tl.load(requests + tl.program_id(0) // NUM_KV_HEADS)
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    start = tl.load(query_start_loc + request)
    num_new = tl.load(query_start_loc + request + 1) - start
    first_new = tl.program_id(1) * QUERY_TILE
    if first_new >= num_new:
        return
    row = row_of(rows, request, width)
    num_computed = tl.load(seq_lens + request) - num_new
    replaced = replaced_blocks_of(row, num_computed + 1, True, WINDOW, BLOCK_SIZE)
    if ONLY_BY_HEAD and replaced == 0:
        return
    own = layer * NUM_KV_HEADS + kv_head
    dealt = first + request.to(tl.int64) * (NUM_HEADS + 1) + own
    kept = kept_blocks_of(dealt, replaced, True)
    lane, channel = tl.arange(0, QUERY_LANES), tl.arange(0, HEAD_LANES)
    index, query_head = first_new + lane // GROUP_SIZE, kv_head * GROUP_SIZE + lane % GROUP_SIZE
    is_query = (lane < QUERY_TILE * GROUP_SIZE) & (index < num_new)
    is_channel = channel < HEAD_SIZE
    is_used = is_query[:, None] & is_channel[None, :]
    token = (start + index).to(tl.int64)
    queries = query + token * query_stride + query_head * query_head_stride
    q = tl.load(queries[:, None] + channel[None, :], mask=is_used, other=0.0)

    # Places among the entries that the head attends: positions, but for what is not kept.
    last_visible = num_computed + index + (kept - replaced) * BLOCK_SIZE
    stop = tl.max(tl.where(is_query, last_visible + 1, 0), 0)
    _, total, values = attend_entries(
        *(q, 0, stop, last_visible, head_blocks, row, replaced, dealt, own),
        scale * tl.load(key_scale),
        logits_soft_cap,
        HAS_SOFT_CAP,
        NUM_HEADS,
        HEAD_SIZE,
        BLOCK_SIZE,
        KEY_TILE,
    )
    result = values / total[:, None] * tl.load(value_scale)
    places = output + token * output_stride + query_head * output_head_stride
    tl.store(places[:, None] + channel[None, :], result.to(output.dtype.element_ty), mask=is_used)
