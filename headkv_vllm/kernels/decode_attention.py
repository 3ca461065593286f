# SPDX-License-Identifier: Apache-2.0
"""Attention of single tokens over head blocks: each KV head has entries of its own.

Two launches: the splits of `kv_splits`, then their combination.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import DeviceRows, DeviceTokens, LayerInputs
from headkv_vllm.kernels.kv_splits import KVSplits
from headkv_vllm.kernels.online_softmax import attend_entries, block_n
from headkv_vllm.kernels.rows import allocation_of, replaced_blocks_of, row_of

MAX_BLOCK_N: Final = 32
"""Entries that a program reads at a time: with more, registers spill at a head size of 128."""
BLOCK_SPLITS: Final = 16
"""Splits that are combined at a time."""


def attend_by_head(
    query: torch.Tensor,
    rows: DeviceRows,
    tokens: DeviceTokens,
    splits: KVSplits,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    """query, output: [num_tokens, num_heads, head_size], contiguous in the last dimension.

    A token of a request that is not compressed attends all of its blocks. Nothing is written for
    tokens that pad the batch.
    """
    num_tokens, num_heads, head_size = query.shape
    group_size, max_splits = num_heads // rows.num_kv_heads, splits.sequences.shape[1]
    partial = query.new_empty((max_splits, group_size, head_size), dtype=torch.float32)
    # Of each split and query head: its largest logit, and the sum of exponentials below it.
    statistics = query.new_empty((max_splits, group_size, 2), dtype=torch.float32)
    layer = inputs.layer
    block_d = triton.next_power_of_2(head_size)
    _attend_split[(max_splits,)](
        query,
        query.stride(0),
        query.stride(1),
        inputs.head_blocks,
        rows.rows,
        rows.rows.stride(0),
        rows.allocations,
        tokens.requests,
        tokens.ends,
        splits.seq_lens[layer],
        splits.first_split[layer],
        splits.sequences[layer],
        partial,
        statistics,
        output,
        output.stride(0),
        output.stride(1),
        num_tokens * rows.num_kv_heads,
        layer,
        inputs.scale,
        inputs.logits_soft_cap,
        inputs.key_scale,
        inputs.value_scale,
        HAS_SOFT_CAP=inputs.logits_soft_cap > 0,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.heads_per_block,
        GROUP_SIZE=group_size,
        BLOCK_M=max(16, triton.next_power_of_2(group_size)),
        HEAD_SIZE=head_size,
        BLOCK_D=block_d,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        BLOCK_N=min(MAX_BLOCK_N, block_n(query)),
        num_stages=2,
    )
    _combine_splits[(num_tokens * rows.num_kv_heads, group_size)](
        partial,
        statistics,
        splits.first_split[layer],
        output,
        output.stride(0),
        output.stride(1),
        inputs.value_scale,
        NUM_KV_HEADS=rows.num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_SIZE=head_size,
        BLOCK_D=block_d,
        BLOCK_SPLITS=BLOCK_SPLITS,
    )


# Where a layer's own parts of these begin is not the same for all layers and steps. Their numbers
# are read one at a time, which needs no alignment.
PARTS = ("seq_lens", "first_split", "sequences")


@triton.jit(do_not_specialize=["width", "num_seqs", "layer", *PARTS])
def _attend_split(
    query,
    query_stride,
    query_head_stride,
    head_blocks,
    rows,
    width,
    allocations,
    requests,
    ends,
    seq_lens,
    first_split,
    sequences,
    partial,
    statistics,
    output,
    output_stride,
    output_head_stride,
    num_seqs,
    layer,
    scale,
    logits_soft_cap,
    key_scale,
    value_scale,
    HAS_SOFT_CAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    split = tl.program_id(0)
    if split >= tl.load(first_split + num_seqs):
        return
    sequence = tl.load(sequences + split)
    token, kv_head = sequence // NUM_KV_HEADS, sequence % NUM_KV_HEADS
    row = row_of(rows, tl.load(requests + token), width)
    replaced = replaced_blocks_of(row, tl.load(ends + token), True, WINDOW, BLOCK_SIZE)
    own = layer * NUM_KV_HEADS + kv_head
    allocation = allocation_of(row, allocations, own, True, NUM_HEADS)

    in_group, channel = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    is_query = (in_group[:, None] < GROUP_SIZE) & (channel < HEAD_SIZE)[None, :]
    head = kv_head * GROUP_SIZE + in_group[:, None]
    queries = query + token.to(tl.int64) * query_stride
    places = head * query_head_stride + channel[None, :]
    q = tl.load(queries + places, mask=is_query, other=0.0)

    own_first = tl.load(first_split + sequence)
    own_splits = tl.load(first_split + sequence + 1) - own_first
    seq_len = tl.load(seq_lens + sequence)
    # Rounded up, but less than to BLOCK_N: the splits of a sequence are of about one length.
    split_len = tl.cdiv(tl.cdiv(seq_len, own_splits), BLOCK_N // 2) * (BLOCK_N // 2)
    start = tl.minimum((split - own_first) * split_len, seq_len)
    stop = tl.minimum(start + split_len, seq_len)
    last_visible = tl.zeros((BLOCK_M,), tl.int32) + stop
    largest, total, values = attend_entries(
        *(q, start, stop, last_visible, head_blocks, row, replaced, allocation, own),
        scale * tl.load(key_scale),
        logits_soft_cap,
        HAS_SOFT_CAP,
        NUM_HEADS,
        HEAD_SIZE,
        BLOCK_SIZE,
        BLOCK_N,
    )
    if own_splits == 1:
        result = values / total[:, None] * tl.load(value_scale)
        place = output + token.to(tl.int64) * output_stride + head * output_head_stride
        place += channel[None, :]
        tl.store(place, result.to(output.dtype.element_ty), mask=is_query)
    else:
        result_place = (split.to(tl.int64) * GROUP_SIZE + in_group) * HEAD_SIZE
        tl.store(partial + result_place[:, None] + channel[None, :], values, mask=is_query)
        own_statistics = statistics + (split.to(tl.int64) * GROUP_SIZE + in_group) * 2
        tl.store(own_statistics, largest, mask=in_group < GROUP_SIZE)
        tl.store(own_statistics + 1, total, mask=in_group < GROUP_SIZE)


@triton.jit(do_not_specialize=["first_split"])
def _combine_splits(
    partial,
    statistics,
    first_split,
    output,
    output_stride,
    output_head_stride,
    value_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """One program for each sequence and query head. A single split has written its result."""
    sequence, in_group = tl.program_id(0), tl.program_id(1)
    first = tl.load(first_split + sequence).to(tl.int64)
    stop = tl.load(first_split + sequence + 1).to(tl.int64)
    if stop - first <= 1:
        return
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_SIZE
    largest, total = float("-inf"), 0.0
    values = tl.zeros((BLOCK_D,), tl.float32)
    for begin in range(first, stop, BLOCK_SPLITS):
        split = begin + tl.arange(0, BLOCK_SPLITS)
        is_split = split < stop
        place = split * GROUP_SIZE + in_group
        split_largest = tl.load(statistics + 2 * place, mask=is_split, other=float("-inf"))
        split_total = tl.load(statistics + 2 * place + 1, mask=is_split, other=0.0)
        added = tl.load(
            partial + place[:, None] * HEAD_SIZE + channel[None, :],
            mask=is_split[:, None] & is_channel[None, :],
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(split_largest, 0))
        fade, gain = tl.exp(largest - new_largest), tl.exp(split_largest - new_largest)
        total = total * fade + tl.sum(split_total * gain, 0)
        values = values * fade + tl.sum(added * gain[:, None], 0)
        largest = new_largest
    token, kv_head = (sequence // NUM_KV_HEADS).to(tl.int64), sequence % NUM_KV_HEADS
    head = kv_head * GROUP_SIZE + in_group
    result = values / total * tl.load(value_scale)
    place = output + token * output_stride + head * output_head_stride + channel
    tl.store(place, result.to(output.dtype.element_ty), mask=is_channel)
