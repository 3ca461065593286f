# SPDX-License-Identifier: Apache-2.0
"""Attention of some queries over a run of a head's entries, a block of them at a time.

Softmax without all logits at once: Milakov and Gimelshein, arXiv 1805.02867.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.rows import kept_blocks_of, place_of

MAX_BLOCK_N: Final = 64
MAX_KEY_BYTES: Final = 16 << 10
"""Of the keys that a program reads at a time. They, and as many values, are in the memory that its
threads share, in several stages, and there is little of it."""


def block_n(query: torch.Tensor) -> int:
    """How many entries a program reads at a time, for queries of this type and size."""
    num_bytes: int = triton.next_power_of_2(query.shape[2]) * query.element_size()
    return max(16, min(MAX_BLOCK_N, MAX_KEY_BYTES // num_bytes))


@triton.jit
def capped(logits, logits_soft_cap, HAS_SOFT_CAP: tl.constexpr):
    """logits_soft_cap * tanh(logits / logits_soft_cap), by a sigmoid; as they are without a cap."""
    if HAS_SOFT_CAP:
        logits = logits_soft_cap * (2 * tl.sigmoid(2 * logits / logits_soft_cap) - 1)
    return logits


@triton.jit
def attend_entries(
    q,
    start,
    stop,
    last_visible,
    head_blocks,
    row,
    num_replaced,
    allocation,
    own,
    logit_scale,
    logits_soft_cap,
    HAS_SOFT_CAP: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Over entries `start` to `stop` of those that head `own` (layer * H + head) attends.

    q: [BLOCK_M, BLOCK_D]; last_visible: [BLOCK_M], the last entry that each query sees;
    allocation: the head's, see `allocation_of`. num_replaced: see `replaced_blocks_of`.
    Returns for each query its largest logit, the sum of exponentials below it, and the sum of
    values weighted by these, [BLOCK_M, BLOCK_D].
    """
    num_compressed = tl.load(row + 1)
    first_kept = tl.load(allocation)
    kept = kept_blocks_of(allocation, num_replaced, True)
    channel = tl.arange(0, q.shape[1])
    is_channel = channel < HEAD_SIZE
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    values = tl.zeros((q.shape[0], q.shape[1]), tl.float32)
    for begin in range(start, stop, BLOCK_N):
        entry = begin + tl.arange(0, BLOCK_N)
        is_entry = entry < stop
        place = place_of(
            *(entry, is_entry, row, num_compressed, num_replaced, kept, first_kept, own),
            NUM_HEADS,
            BLOCK_SIZE,
        )
        place *= 2 * HEAD_SIZE
        k = tl.load(
            head_blocks + place[None, :] + channel[:, None],
            mask=is_channel[:, None] & is_entry[None, :],
            other=0.0,
        )
        logits = tl.dot(q, k.to(q.dtype), input_precision="ieee") * logit_scale
        logits = capped(logits, logits_soft_cap, HAS_SOFT_CAP)
        is_visible = is_entry[None, :] & (entry[None, :] <= last_visible[:, None])
        logits = tl.where(is_visible, logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp(logits - new_largest[:, None])
        fade = tl.exp(largest - new_largest)
        v = tl.load(
            head_blocks + place[:, None] + HEAD_SIZE + channel[None, :],
            mask=is_entry[:, None] & is_channel[None, :],
            other=0.0,
        )
        total = total * fade + tl.sum(weights, 1)
        added = tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        values = values * fade[:, None] + added
        largest = new_largest
    return largest, total, values
