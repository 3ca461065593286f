# SPDX-License-Identifier: Apache-2.0
"""Causal attention of prompts over blocks of tokens, before anything of them is given up."""

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import BlockRow
from headkv_vllm.kernels.head_attention import LayerInputs
from headkv_vllm.kernels.prompts import Prompts, launch_arguments
from headkv_vllm.kernels.rows import HEADER, DeviceRows, row_of

QUERY_TILE = 16
"""Tokens whose queries a program holds, times the query heads of a KV head."""
KEY_TILE = 64


def attend_whole(
    query: torch.Tensor,
    rows: DeviceRows,
    prompts: Prompts,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    """query, output: [num_tokens, num_heads, head_size], of the whole step.

    Writes the tokens of `prompts.requests`, each of which attends all positions up to its own.
    """
    _, num_heads, head_size = query.shape
    group_size = num_heads // rows.num_kv_heads
    grid = (
        len(prompts.requests) * rows.num_kv_heads,
        triton.cdiv(prompts.most_new_tokens, QUERY_TILE),
    )
    _attend_whole[grid](
        *launch_arguments(rows, prompts),
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
        HAS_SOFT_CAP=inputs.logits_soft_cap > 0,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        GROUP_SIZE=group_size,
        QUERY_TILE=QUERY_TILE,
        QUERY_LANES=triton.next_power_of_2(QUERY_TILE * group_size),
        HEAD_SIZE=head_size,
        HEAD_LANES=triton.next_power_of_2(head_size),
        BLOCK_SIZE=rows.block_size,
        KEY_TILE=KEY_TILE,
    )


def attend_whole_plain(
    query: torch.Tensor,
    rows: DeviceRows,
    prompts: Prompts,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    """Plain twin of `attend_whole`."""
    head_size, group_size = query.shape[2], query.shape[1] // rows.num_kv_heads
    starts, ends = prompts.query_start_loc.tolist(), prompts.seq_lens.tolist()
    for request in prompts.requests.tolist():
        blocks = torch.tensor(BlockRow.parse(rows.rows[request].tolist()).blocks)
        num_new = starts[request + 1] - starts[request]
        for head in range(rows.num_kv_heads):
            own = inputs.layer * rows.num_kv_heads + head
            entries = inputs.head_blocks[blocks * rows.num_heads_of_all_layers + own].flatten(0, 1)
            key = entries[:, :head_size].float() * inputs.key_scale
            value = entries[:, head_size:].float() * inputs.value_scale
            group = slice(head * group_size, (head + 1) * group_size)
            for index in range(num_new):
                end, token = ends[request] - num_new + index + 1, starts[request] + index
                logits = query[token, group].float() @ key[:end].T * inputs.scale
                if inputs.logits_soft_cap > 0:
                    logits = inputs.logits_soft_cap * torch.tanh(logits / inputs.logits_soft_cap)
                output[token, group] = (logits.softmax(-1) @ value[:end]).to(output.dtype)


@triton.jit
def _attend_whole(
    rows,
    width,
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
    HAS_SOFT_CAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    QUERY_LANES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
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
    blocks = row + HEADER + tl.load(row + 1)
    lane, channel = tl.arange(0, QUERY_LANES), tl.arange(0, HEAD_LANES)
    index, query_head = first_new + lane // GROUP_SIZE, kv_head * GROUP_SIZE + lane % GROUP_SIZE
    is_query = (lane < QUERY_TILE * GROUP_SIZE) & (index < num_new)
    is_channel = channel < HEAD_SIZE
    is_used = is_query[:, None] & is_channel[None, :]
    token = (start + index).to(tl.int64)
    queries = query + token * query_stride + query_head * query_head_stride
    q = tl.load(queries[:, None] + channel[None, :], mask=is_used, other=0.0)
    logit_scale = scale * tl.load(key_scale)

    num_computed = tl.load(seq_lens + request) - num_new
    last_visible = num_computed + index
    stop = num_computed + tl.minimum(first_new + QUERY_TILE, num_new)
    largest = tl.full((QUERY_LANES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERY_LANES,), tl.float32)
    values = tl.zeros((QUERY_LANES, HEAD_LANES), tl.float32)
    for begin in range(0, stop, KEY_TILE):
        position = begin + tl.arange(0, KEY_TILE)
        is_key = position < stop
        block = tl.load(blocks + position // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        head_block = block * NUM_HEADS + layer * NUM_KV_HEADS + kv_head
        entry = (head_block * BLOCK_SIZE + position % BLOCK_SIZE) * (2 * HEAD_SIZE)
        k = tl.load(
            head_blocks + entry[None, :] + channel[:, None],
            mask=is_channel[:, None] & is_key[None, :],
            other=0.0,
        )
        logits = tl.dot(q, k.to(q.dtype), input_precision="ieee") * logit_scale
        if HAS_SOFT_CAP:
            logits = logits_soft_cap * (2 * tl.sigmoid(2 * logits / logits_soft_cap) - 1)
        # Position 0 is visible to every lane, so that none is without a largest logit.
        is_visible = position[None, :] <= tl.maximum(last_visible, 0)[:, None]
        logits = tl.where(is_visible & is_key[None, :], logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp(logits - new_largest[:, None])
        fade = tl.exp(largest - new_largest)
        v = tl.load(
            head_blocks + entry[:, None] + HEAD_SIZE + channel[None, :],
            mask=is_key[:, None] & is_channel[None, :],
            other=0.0,
        )
        total = total * fade + tl.sum(weights, 1)
        added = tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        values = values * fade[:, None] + added
        largest = new_largest
    result = values / total[:, None] * tl.load(value_scale)
    places = output + token * output_stride + query_head * output_head_stride
    tl.store(places[:, None] + channel[None, :], result.to(output.dtype.element_ty), mask=is_used)
