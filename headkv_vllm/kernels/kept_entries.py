# SPDX-License-Identifier: Apache-2.0
"""Copies what each head keeps of a prompt into its head blocks."""

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import head_blocks as head_blocks_of
from headkv_vllm.kernels.chunks import Chunks, completed, launch_arguments, prompt_of
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import HEADER, DeviceRows


def copy_entries(
    positions: torch.Tensor, rows: DeviceRows, chunks: Chunks, inputs: LayerInputs
) -> None:
    """positions: [num_chunks, H, longest] int32, see `kept_positions`. Changes `head_blocks`.

    Entries are copied as they are stored, whatever their type.
    """
    most_head_blocks = triton.cdiv(chunks.longest, rows.block_size)
    content = inputs.head_blocks.shape[2]
    _copy[(positions.shape[0] * rows.num_kv_heads, most_head_blocks)](
        *launch_arguments(rows, chunks),
        rows.first,
        positions,
        inputs.head_blocks,
        chunks.longest,
        inputs.layer,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        CONTENT=content,
        CONTENT_LANES=triton.next_power_of_2(content),
        ENTRY_LANES=triton.next_power_of_2(rows.block_size),
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
    )


def copy_entries_plain(
    positions: torch.Tensor, rows: DeviceRows, chunks: Chunks, inputs: LayerInputs
) -> None:
    """Plain twin of `copy_entries`."""
    layer, cache, block_size = inputs.layer, inputs.head_blocks, rows.block_size
    for prompt, one in enumerate(completed(rows, chunks)):
        if one is None:
            continue
        counts = torch.tensor(one.first).diff().view(rows.num_layers, rows.num_kv_heads)
        for head in range(rows.num_kv_heads):
            targets = head_blocks_of(one.row.compressed_blocks, counts, layer, head)
            kept = positions[prompt, head, : len(targets) * block_size].tolist()
            own = layer * rows.num_kv_heads + head
            for place, position in enumerate(kept):
                block = one.row.blocks[position // block_size]
                source = cache[block * rows.num_heads_of_all_layers + own, position % block_size]
                cache[targets[place // block_size], place % block_size] = source


@triton.jit(do_not_specialize=["width", "longest", "layer"])
def _copy(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    first,
    positions,
    head_blocks,
    longest,
    layer,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    CONTENT: tl.constexpr,
    CONTENT_LANES: tl.constexpr,
    ENTRY_LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One program for each (prompt, KV head) and head block that it may keep."""
    request, row, window_start = prompt_of(
        rows, width, requests, query_start_loc, seq_lens, NUM_KV_HEADS, WINDOW
    )
    own = layer * NUM_KV_HEADS + tl.program_id(0) % NUM_KV_HEADS
    dealt = first + request.to(tl.int64) * (NUM_HEADS + 1) + own
    begin, index = tl.load(dealt), tl.program_id(1)
    if (window_start < 0) | (index >= tl.load(dealt + 1) - begin):
        return
    entry, lane = tl.arange(0, ENTRY_LANES), tl.arange(0, CONTENT_LANES)
    is_entry = entry < BLOCK_SIZE
    is_used = is_entry[:, None] & (lane < CONTENT)[None, :]
    place = tl.program_id(0).to(tl.int64) * longest + index * BLOCK_SIZE + entry
    position = tl.load(positions + place, mask=is_entry, other=0)
    num_compressed = tl.load(row + 1)
    blocks = row + HEADER + num_compressed + position // BLOCK_SIZE
    block = tl.load(blocks, mask=is_entry, other=0).to(tl.int64)
    source = ((block * NUM_HEADS + own) * BLOCK_SIZE + position % BLOCK_SIZE) * CONTENT
    among_kept = begin + index
    to_block = tl.load(row + HEADER + among_kept // NUM_HEADS).to(tl.int64)
    target = ((to_block * NUM_HEADS + among_kept % NUM_HEADS) * BLOCK_SIZE + entry) * CONTENT
    kept = tl.load(head_blocks + source[:, None] + lane[None, :], mask=is_used)
    tl.store(head_blocks + target[:, None] + lane[None, :], kept, mask=is_used)
