# SPDX-License-Identifier: Apache-2.0
"""Attention over head blocks: each KV head of each token has entries of its own, and a number."""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.online_softmax import attend_entries, attended_plain, key_tile
from headkv_vllm.kernels.rows import (
    DeviceRows,
    DeviceTokens,
    replaced_blocks_of,
    row_of,
)
from headkv_vllm.kernels.work_list import WorkList


def attend_by_head(
    query: torch.Tensor,
    rows: DeviceRows,
    tokens: DeviceTokens,
    work: WorkList,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    """query, output: [num_tokens, num_heads, head_size], contiguous in the last dimension.

    A token of a request that is not compressed attends all of its blocks. Nothing is written for
    tokens that fill the batch up. Two launches: pieces as `work` has them, then their sums, as in
    Flash-Decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
    """
    num_tokens, num_heads, head_size = query.shape
    group_size, most_pieces = num_heads // rows.num_kv_heads, work.sequences.shape[1]
    partial = query.new_empty((most_pieces, group_size, head_size), dtype=torch.float32)
    # Of each piece and query head: its largest logit, and the sum of exponentials below it.
    statistics = query.new_empty((most_pieces, group_size, 2), dtype=torch.float32)
    layer = inputs.layer
    head_lanes = triton.next_power_of_2(head_size)
    _attend_piece[(most_pieces,)](
        query,
        query.stride(0),
        query.stride(1),
        inputs.head_blocks,
        rows.rows,
        rows.rows.stride(0),
        rows.first,
        tokens.requests,
        tokens.ends,
        work.seq_lens[layer],
        work.first_piece[layer],
        work.sequences[layer],
        work.piece_len[layer],
        partial,
        statistics,
        num_tokens * rows.num_kv_heads,
        layer,
        inputs.scale,
        inputs.logits_soft_cap,
        inputs.key_scale,
        HAS_SOFT_CAP=inputs.logits_soft_cap > 0,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        GROUP_SIZE=group_size,
        GROUP_LANES=max(16, triton.next_power_of_2(group_size)),
        HEAD_SIZE=head_size,
        HEAD_LANES=head_lanes,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        TILE=key_tile(query),
    )
    _add_pieces[(num_tokens * rows.num_kv_heads,)](
        partial,
        statistics,
        work.first_piece[layer],
        output,
        output.stride(0),
        output.stride(1),
        inputs.value_scale,
        NUM_KV_HEADS=rows.num_kv_heads,
        GROUP_SIZE=group_size,
        GROUP_LANES=triton.next_power_of_2(group_size),
        HEAD_SIZE=head_size,
        HEAD_LANES=head_lanes,
    )


def attend_by_head_plain(
    query: torch.Tensor,
    rows: DeviceRows,
    tokens: DeviceTokens,
    work: WorkList,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    """Plain twin of `attend_by_head`: it has no use for `work`."""
    ends = zip(tokens.requests.tolist(), tokens.ends.tolist(), strict=True)
    for token, (request, end) in enumerate(ends):
        if end:
            output[token] = attended_plain(query[token], rows, request, end, inputs)


# Where a layer's own parts of these begin is not the same for all layers and steps. Their numbers
# are read one at a time, which needs no alignment.
PARTS = ("seq_lens", "first_piece", "sequences", "piece_lens")


@triton.jit(do_not_specialize=["width", "num_seqs", "layer", *PARTS])
def _attend_piece(
    query,
    query_stride,
    query_head_stride,
    head_blocks,
    rows,
    width,
    first,
    requests,
    ends,
    seq_lens,
    first_piece,
    sequences,
    piece_lens,
    partial,
    statistics,
    num_seqs,
    layer,
    scale,
    logits_soft_cap,
    key_scale,
    HAS_SOFT_CAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    piece = tl.program_id(0)
    if piece >= tl.load(first_piece + num_seqs):
        return
    sequence = tl.load(sequences + piece)
    token, kv_head = sequence // NUM_KV_HEADS, sequence % NUM_KV_HEADS
    request = tl.load(requests + token)
    row = row_of(rows, request, width)
    replaced = replaced_blocks_of(row, tl.load(ends + token), True, WINDOW, BLOCK_SIZE)
    own = layer * NUM_KV_HEADS + kv_head
    dealt = first + request.to(tl.int64) * (NUM_HEADS + 1) + own

    lane, channel = tl.arange(0, GROUP_LANES), tl.arange(0, HEAD_LANES)
    is_channel = channel < HEAD_SIZE
    is_query = (lane[:, None] < GROUP_SIZE) & is_channel[None, :]
    queries = query + token.to(tl.int64) * query_stride
    places = (kv_head * GROUP_SIZE + lane[:, None]) * query_head_stride + channel[None, :]
    q = tl.load(queries + places, mask=is_query, other=0.0)

    piece_len = tl.load(piece_lens)
    start = (piece - tl.load(first_piece + sequence)) * piece_len
    stop = tl.minimum(start + piece_len, tl.load(seq_lens + sequence))
    last_visible = tl.zeros((GROUP_LANES,), tl.int32) + stop
    largest, total, values = attend_entries(
        *(q, start, stop, last_visible, head_blocks, row, replaced, dealt, own),
        scale * tl.load(key_scale),
        logits_soft_cap,
        HAS_SOFT_CAP,
        NUM_HEADS,
        HEAD_SIZE,
        BLOCK_SIZE,
        TILE,
    )
    result = (piece.to(tl.int64) * GROUP_SIZE + lane) * HEAD_SIZE
    tl.store(partial + result[:, None] + channel[None, :], values, mask=is_query)
    own_statistics = statistics + (piece.to(tl.int64) * GROUP_SIZE + lane) * 2
    tl.store(own_statistics, largest, mask=lane < GROUP_SIZE)
    tl.store(own_statistics + 1, total, mask=lane < GROUP_SIZE)


@triton.jit(do_not_specialize=["first_piece"])
def _add_pieces(
    partial,
    statistics,
    first_piece,
    output,
    output_stride,
    output_head_stride,
    value_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
):
    """One program for each sequence."""
    sequence = tl.program_id(0)
    first = tl.load(first_piece + sequence).to(tl.int64)
    stop = tl.load(first_piece + sequence + 1).to(tl.int64)
    if first == stop:
        return
    lane, channel = tl.arange(0, GROUP_LANES), tl.arange(0, HEAD_LANES)
    is_lane = lane < GROUP_SIZE
    is_used = is_lane[:, None] & (channel < HEAD_SIZE)[None, :]
    largest = tl.full((GROUP_LANES,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_LANES,), tl.float32)
    values = tl.zeros((GROUP_LANES, HEAD_LANES), tl.float32)
    for piece in range(first, stop):
        place = piece * GROUP_SIZE + lane
        piece_largest = tl.load(statistics + 2 * place, mask=is_lane, other=0.0)
        piece_total = tl.load(statistics + 2 * place + 1, mask=is_lane, other=1.0)
        added = tl.load(
            partial + place[:, None] * HEAD_SIZE + channel[None, :], mask=is_used, other=0.0
        )
        new_largest = tl.maximum(largest, piece_largest)
        fade, gain = tl.exp(largest - new_largest), tl.exp(piece_largest - new_largest)
        total = total * fade + piece_total * gain
        values = values * fade[:, None] + added * gain[:, None]
        largest = new_largest
    token, kv_head = (sequence // NUM_KV_HEADS).to(tl.int64), sequence % NUM_KV_HEADS
    head = (kv_head * GROUP_SIZE + lane[:, None]) * output_head_stride
    result = values / total[:, None] * tl.load(value_scale)
    place = output + token * output_stride + head + channel[None, :]
    tl.store(place, result.to(output.dtype.element_ty), mask=is_used)
