# SPDX-License-Identifier: Apache-2.0
"""Attention of some queries over a run of a head's entries, a tile of them at a time.

Softmax without all logits at once: Milakov and Gimelshein, arXiv 1805.02867.
"""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import (
    DeviceRows,
    attended_head_blocks,
    attended_tokens,
    kept_blocks_of,
    place_of,
)

MOST_KEYS = 64
KEY_BYTES = 16 << 10
"""Of the keys that a program reads at once, at most: they, and as many values, are in memory that
its threads share, of which there is little, some times over."""


def key_tile(query: torch.Tensor) -> int:
    """How many entries a program reads at once, for queries of this type and size."""
    num_bytes: int = triton.next_power_of_2(query.shape[2]) * query.element_size()
    return max(16, min(MOST_KEYS, KEY_BYTES // num_bytes))


def attended_plain(
    query: torch.Tensor, rows: DeviceRows, request: int, end: int, inputs: LayerInputs
) -> torch.Tensor:
    """What one token gets: for the plain twins of the kernels that call `attend_entries`.

    query: [num_heads, head_size], of the token before position `end`. Returns the same shape.
    """
    output, head_size = torch.empty_like(query), query.shape[1]
    groups = output.unflatten(0, (rows.num_kv_heads, -1))
    by_head = zip(
        query.unflatten(0, (rows.num_kv_heads, -1)),
        attended_head_blocks(rows, request, end, inputs.layer),
        attended_tokens(rows, request, end, inputs.layer),
        strict=True,
    )
    for head, (queries, table, length) in enumerate(by_head):
        entries = inputs.head_blocks[table].flatten(0, 1)[:length].float()
        key = entries[:, :head_size] * inputs.key_scale
        value = entries[:, head_size:] * inputs.value_scale
        logits = queries.float() @ key.T * inputs.scale
        if inputs.logits_soft_cap > 0:
            logits = inputs.logits_soft_cap * torch.tanh(logits / inputs.logits_soft_cap)
        groups[head] = (logits.softmax(-1) @ value).to(output.dtype)
    return output


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
    first,
    own,
    logit_scale,
    logits_soft_cap,
    HAS_SOFT_CAP: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Over entries `start` to `stop` of those that head `own` (layer * H + head) attends.

    q: [lanes, channels]; last_visible: [lanes], the last entry of each; first: of the head's
    request and head, see `DeviceRows`. num_replaced: see `replaced_blocks_of`.
    Returns for each lane its largest logit, the sum of exponentials below it, and the sum of
    values weighed by these, [lanes, channels].
    """
    num_compressed = tl.load(row + 1)
    first_kept = tl.load(first)
    kept = kept_blocks_of(first, num_replaced, True)
    channel = tl.arange(0, q.shape[1])
    is_channel = channel < HEAD_SIZE
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    values = tl.zeros((q.shape[0], q.shape[1]), tl.float32)
    for begin in range(start, stop, TILE):
        entry = begin + tl.arange(0, TILE)
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
