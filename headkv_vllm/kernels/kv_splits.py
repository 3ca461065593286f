# SPDX-License-Identifier: Apache-2.0
"""Splits the entries of heads of very different lengths into parts of about one length.

As in Flash-Decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html), but the number of
splits depends on each sequence's own length. A sequence is a (token, KV head).
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import Buffers, DeviceRows, DeviceTokens
from headkv_vllm.kernels.rows import allocation_of, kept_blocks_of, replaced_blocks_of, row_of

BLOCK_N: Final = 64
"""Entries that a program reads at a time; a split is a multiple of it."""
SPLITS_PER_PROCESSOR: Final = 8


def num_splits_of(device: torch.device) -> int:
    """About how many splits of a layer keep all processors of `device` busy."""
    if device.type != "cuda":
        return SPLITS_PER_PROCESSOR
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return SPLITS_PER_PROCESSOR * processors


@dataclass(frozen=True)
class KVSplits:
    """For each layer, which split of which sequence each program computes.

    seq_lens: [L, num_seqs] int32, entries that each attends; 0 for tokens that pad a batch.
    first_split: [L, num_seqs + 1] int32, of each sequence, and the number of all splits.
    sequences: [L, max_splits] int32, of each split; without meaning beyond the last.
    """

    seq_lens: torch.Tensor
    first_split: torch.Tensor
    sequences: torch.Tensor


def kv_splits(
    rows: DeviceRows, tokens: DeviceTokens, num_splits: int, buffers: Buffers
) -> KVSplits:
    """The splits of a layer come to at most `num_splits` plus one for each sequence.

    All are in `buffers`.
    """
    num_seqs = len(tokens.requests) * rows.num_kv_heads
    num_layers = rows.num_layers
    splits = KVSplits(
        buffers.take("seq_lens", num_layers, num_seqs),
        buffers.take("first_split", num_layers, num_seqs + 1),
        buffers.take("sequences", num_layers, num_seqs + num_splits),
    )
    block_seqs = triton.next_power_of_2(num_seqs)
    _split[(rows.num_layers,)](
        rows.rows,
        rows.rows.stride(0),
        rows.allocations,
        tokens.requests,
        tokens.ends,
        splits.seq_lens,
        splits.first_split,
        splits.sequences,
        num_seqs,
        num_splits,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.heads_per_block,
        BLOCK_SEQS=block_seqs,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        BLOCK_N=BLOCK_N,
        num_warps=min(32, max(4, block_seqs // 256)),  # with fewer, registers spill
    )
    return splits


@triton.jit(do_not_specialize=["width", "num_seqs"])
def _split(
    rows,
    width,
    allocations,
    requests,
    ends,
    seq_lens,
    first_split,
    sequences,
    num_seqs,
    num_splits,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for each layer."""
    layer = tl.program_id(0)
    sequence = tl.arange(0, BLOCK_SEQS)
    token = sequence // NUM_KV_HEADS
    is_used = sequence < num_seqs
    request = tl.load(requests + token, mask=is_used, other=0)
    end = tl.load(ends + token, mask=is_used, other=0)
    row = row_of(rows, request, width)
    replaced = replaced_blocks_of(row, end, is_used, WINDOW, BLOCK_SIZE)
    own = layer * NUM_KV_HEADS + sequence % NUM_KV_HEADS
    allocation = allocation_of(row, allocations, own, is_used, NUM_HEADS)
    kept = kept_blocks_of(allocation, replaced, is_used)
    length = end + (kept - replaced) * BLOCK_SIZE

    split_len = tl.maximum(tl.cdiv(tl.sum(length, 0), num_splits * BLOCK_N), 1) * BLOCK_N
    # An eighth more than that makes no split of its own.
    own_splits = tl.maximum(tl.cdiv(length - split_len // 8, split_len), tl.minimum(length, 1))
    last = tl.cumsum(own_splits, 0)
    of_layer = sequences + layer * (num_seqs + num_splits)
    for split in range(tl.max(own_splits, 0)):
        place = of_layer + last - own_splits + split
        tl.store(place, sequence, mask=is_used & (split < own_splits))
    tl.store(seq_lens + layer * num_seqs + sequence, length, mask=is_used)
    first_split += layer * (num_seqs + 1)
    tl.store(first_split, 0)
    tl.store(first_split + 1 + sequence, last, mask=is_used)
