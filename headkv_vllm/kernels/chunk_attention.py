# SPDX-License-Identifier: Apache-2.0
"""Causal attention of chunks: of prompts over blocks of tokens, of what follows them by head."""

from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import Chunks, DeviceRows, LayerInputs
from headkv_vllm.kernels.online_softmax import attend_entries, block_n
from headkv_vllm.kernels.rows import allocation_of, kept_blocks_of, replaced_blocks_of, row_of

MAX_BLOCK_M: Final = 128
"""Queries that a program holds: tokens, times the query heads of a KV head."""
MAX_QUERY_BYTES: Final = 32 << 10
"""Of the queries that a program holds; see `MAX_KEY_BYTES`."""


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
    only_by_head: leave out tokens that attend all positions, see `dense_tables`.
    """
    _, num_heads, head_size = query.shape
    group_size = num_heads // rows.num_kv_heads
    block_d, padded_group = triton.next_power_of_2(head_size), triton.next_power_of_2(group_size)
    element_size = query.element_size()
    block_m = min(MAX_BLOCK_M, MAX_QUERY_BYTES // (block_d * element_size))
    block_m = block_m if element_size <= 2 else block_m // 2
    block_tokens = max(1, block_m // padded_group)
    grid = (
        len(chunks.requests) * rows.num_kv_heads,
        triton.cdiv(chunks.max_query_len, block_tokens),
    )
    _attend_chunks[grid](
        rows.rows,
        rows.rows.stride(0),
        rows.allocations,
        chunks.requests,
        chunks.query_start_loc,
        chunks.seq_lens,
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
        NUM_HEADS=rows.heads_per_block,
        GROUP_SIZE=group_size,
        BLOCK_TOKENS=block_tokens,
        BLOCK_M=max(16, block_tokens * padded_group),
        HEAD_SIZE=head_size,
        BLOCK_D=block_d,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        BLOCK_N=block_n(query),
        num_warps=8 if block_d * element_size >= 256 else 4,  # or registers spill
    )


@triton.jit(do_not_specialize=["width", "layer"])
def _attend_chunks(
    rows,
    width,
    allocations,
    requests,
    query_start_loc,
    seq_lens,
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
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for each (chunk, KV head) and block of its new tokens."""
    request = tl.load(requests + tl.program_id(0) // NUM_KV_HEADS)
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    start = tl.load(query_start_loc + request)
    num_new = tl.load(query_start_loc + request + 1) - start
    first_new = tl.program_id(1) * BLOCK_TOKENS
    if first_new >= num_new:
        return
    row = row_of(rows, request, width)
    num_computed = tl.load(seq_lens + request) - num_new
    replaced = replaced_blocks_of(row, num_computed + 1, True, WINDOW, BLOCK_SIZE)
    if ONLY_BY_HEAD and replaced == 0:
        return
    own = layer * NUM_KV_HEADS + kv_head
    allocation = allocation_of(row, allocations, own, True, NUM_HEADS)
    kept = kept_blocks_of(allocation, replaced, True)
    lane, channel = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    index, query_head = first_new + lane // GROUP_SIZE, kv_head * GROUP_SIZE + lane % GROUP_SIZE
    is_query = (lane < BLOCK_TOKENS * GROUP_SIZE) & (index < num_new)
    is_channel = channel < HEAD_SIZE
    is_used = is_query[:, None] & is_channel[None, :]
    token = (start + index).to(tl.int64)
    queries = query + token * query_stride + query_head * query_head_stride
    q = tl.load(queries[:, None] + channel[None, :], mask=is_used, other=0.0)

    # Places among the entries that the head attends: positions, but for what is not kept.
    last_visible = num_computed + index + (kept - replaced) * BLOCK_SIZE
    stop = tl.max(tl.where(is_query, last_visible + 1, 0), 0)
    _, total, values = attend_entries(
        *(q, 0, stop, last_visible, head_blocks, row, replaced, allocation, own),
        scale * tl.load(key_scale),
        logits_soft_cap,
        HAS_SOFT_CAP,
        NUM_HEADS,
        HEAD_SIZE,
        BLOCK_SIZE,
        BLOCK_N,
    )
    result = values / total[:, None] * tl.load(value_scale)
    places = output + token * output_stride + query_head * output_head_stride
    tl.store(places[:, None] + channel[None, :], result.to(output.dtype.element_ty), mask=is_used)
