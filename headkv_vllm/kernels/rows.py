# SPDX-License-Identifier: Apache-2.0
"""How kernels read a request's row; see `cache.block_row` and `cache.head_block_tables`."""

import triton
import triton.language as tl

from headkv_vllm.cache.block_row import HEADER_SIZE

HEADER = tl.constexpr(HEADER_SIZE)


@triton.jit
def row_of(rows, request, width):
    """Where the row of a request begins."""
    return rows + request.to(tl.int64) * width


@triton.jit
def replaced_blocks_of(row, end, is_used, WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The prompt blocks that head blocks replace, as a token with this `end` sees it.

    F where the token follows a compressed prompt, and 0 where it attends all blocks of tokens.
    """
    num_prompt_tokens = tl.load(row, mask=is_used, other=0)
    num_compressed = tl.load(row + 1, mask=is_used, other=0)
    num_full_blocks = tl.maximum(num_prompt_tokens - WINDOW, 0) // BLOCK_SIZE
    return tl.where((num_compressed > 0) & (end > num_prompt_tokens), num_full_blocks, 0)


@triton.jit
def allocation_of(row, allocations, own, is_used, NUM_HEADS: tl.constexpr):
    """Where the allocation of head `own` (layer * H + head) of a request is.

    Of a request that is not compressed this is another's; see `kept_blocks_of`.
    """
    first_block = tl.load(row + HEADER, mask=is_used, other=0).to(tl.int64)
    return allocations + first_block * (NUM_HEADS + 1) + own


@triton.jit
def kept_blocks_of(allocation, num_replaced, is_used):
    """n of a head, see `allocation_of`; 0 for tokens that attend all blocks of tokens."""
    begin = tl.load(allocation, mask=is_used, other=0)
    kept = tl.load(allocation + 1, mask=is_used, other=0) - begin
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
