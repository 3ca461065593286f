# SPDX-License-Identifier: Apache-2.0
"""The rows of a step on the device, and how kernels read them; see `headkv_vllm.block_row`."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import HEADER_SIZE, BlockRow, head_blocks

HEADER = tl.constexpr(HEADER_SIZE)


@dataclass(frozen=True)
class DeviceRows:
    """What a step's requests hold.

    rows: [num_reqs, width] int32. first: [num_reqs, L*H + 1] int32, the place of each head's first
    head block among the K*L*H of its request, and the number of all of them; zeros where K is 0.
    """

    rows: torch.Tensor
    first: torch.Tensor
    num_layers: int
    num_kv_heads: int
    block_size: int
    window: int

    @property
    def num_heads_of_all_layers(self) -> int:
        return self.num_layers * self.num_kv_heads


@dataclass(frozen=True)
class DeviceTokens:
    """Tokens of a step.

    requests: [num_tokens] int32, the row of each token's request.
    ends: [num_tokens] int32, its position plus one: what it attends of a request that is not
        compressed. 0 for tokens that only fill a batch up.
    """

    requests: torch.Tensor
    ends: torch.Tensor


@triton.jit
def row_of(rows, request, width):
    """Where the row of a request begins."""
    return rows + request.to(tl.int64) * width


@triton.jit
def full_blocks_of(num_prompt_tokens, WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """F of a prompt."""
    return tl.maximum(num_prompt_tokens - WINDOW, 0) // BLOCK_SIZE


@triton.jit
def replaced_blocks_of(row, end, is_used, WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The prompt blocks that head blocks stand for, as a token with this `end` sees it.

    F where the token follows a compressed prompt, and 0 where it attends all blocks of tokens.
    """
    num_prompt_tokens = tl.load(row, mask=is_used, other=0)
    num_compressed = tl.load(row + 1, mask=is_used, other=0)
    full = full_blocks_of(num_prompt_tokens, WINDOW, BLOCK_SIZE)
    return tl.where((num_compressed > 0) & (end > num_prompt_tokens), full, 0)


@triton.jit
def kept_blocks_of(first, num_replaced, is_used):
    """n of a head, whose places among all head blocks begin at `first`; 0 without compression."""
    begin = tl.load(first, mask=is_used, other=0)
    kept = tl.load(first + 1, mask=is_used, other=0) - begin
    return tl.where(num_replaced > 0, kept, 0)


@triton.jit
def place_of(
    entry,
    is_used,
    row,
    num_compressed,
    num_replaced,
    kept,
    first_kept,
    own,
    NUM_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Where entries that a head attends are: head block * block_size + offset, int64.

    kept, first_kept: the head's head blocks, and the first one's place among its request's. own:
    layer * H + head. What follows them is in the blocks of tokens from `num_replaced` on.
    """
    index = entry // BLOCK_SIZE
    is_kept = index < kept
    among_kept = first_kept + index
    after_kept = num_compressed + num_replaced + index - kept
    column = tl.where(is_kept, among_kept // NUM_HEADS, after_kept)
    block = tl.load(row + HEADER + column, mask=is_used, other=0).to(tl.int64)
    head_block = block * NUM_HEADS + tl.where(is_kept, among_kept % NUM_HEADS, own)
    return head_block * BLOCK_SIZE + entry % BLOCK_SIZE


def attended_head_blocks(rows: DeviceRows, request: int, end: int, layer: int) -> list[list[int]]:
    """The head blocks that each of the layer's heads attends for a token, in order, by counting."""
    row = BlockRow.parse(rows.rows[request].tolist())
    is_by_head = bool(row.compressed_blocks) and end > row.num_prompt_tokens
    num_replaced = (row.num_prompt_tokens - rows.window) // rows.block_size if is_by_head else 0
    counts = rows.first[request].diff().view(rows.num_layers, rows.num_kv_heads)
    blocks = row.blocks[num_replaced : -(-end // rows.block_size)]
    tables = []
    for head in range(rows.num_kv_heads):
        kept = head_blocks(row.compressed_blocks, counts, layer, head) if is_by_head else []
        own = layer * rows.num_kv_heads + head
        tables.append(kept + [block * rows.num_heads_of_all_layers + own for block in blocks])
    return tables


def attended_tokens(rows: DeviceRows, request: int, end: int, layer: int) -> list[int]:
    """How many entries each of the layer's heads attends for a token: [H]."""
    missing = -end % rows.block_size
    tables = attended_head_blocks(rows, request, end, layer)
    return [len(table) * rows.block_size - missing for table in tables]
