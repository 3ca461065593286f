# SPDX-License-Identifier: Apache-2.0
"""Of each token of a step: its request, what it attends, and where its entry is written."""

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import BlockRow
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.rows import HEADER, DeviceTokens, row_of

TILE = 256


def step_tokens(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    block_size: int,
    buffers: Buffers,
) -> tuple[DeviceTokens, torch.Tensor]:
    """rows: [num_reqs, width] int32. query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs]
    int32, up to the end of this step. num_tokens: of the batch, those that fill it up included.

    Returns the tokens, and their slots, [num_tokens] int64: block * block_size + offset as vLLM
    counts them, and -1, which its kernels skip, for tokens that fill the batch up. All are in
    `buffers`.
    """
    num_reqs = len(seq_lens)
    requests = buffers.take("requests", num_tokens).zero_()
    ends = buffers.take("ends", num_tokens).zero_()
    slots = buffers.take("slots", num_tokens, dtype=torch.int64).fill_(-1)
    grid = (num_reqs, triton.cdiv(max_query_len, TILE))
    _tokens[grid](
        rows, rows.stride(0), query_start_loc, seq_lens, requests, ends, slots, block_size, TILE
    )
    return DeviceTokens(requests, ends), slots


def step_tokens_plain(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    block_size: int,
    buffers: Buffers,
) -> tuple[DeviceTokens, torch.Tensor]:
    """Plain twin of `step_tokens`."""
    requests, ends, slots = [0] * num_tokens, [0] * num_tokens, [-1] * num_tokens
    starts = query_start_loc.tolist()
    for request, seq_len in enumerate(seq_lens.tolist()):
        blocks = BlockRow.parse(rows[request].tolist()).blocks
        num_new = starts[request + 1] - starts[request]
        for index in range(num_new):
            position, token = seq_len - num_new + index, starts[request] + index
            requests[token], ends[token] = request, position + 1
            block = blocks[position // block_size]
            slots[token] = block * block_size + position % block_size
    columns = (torch.tensor(values, dtype=torch.int32) for values in (requests, ends))
    return DeviceTokens(*columns), torch.tensor(slots, dtype=torch.int64)


@triton.jit(do_not_specialize=["width"])
def _tokens(
    rows,
    width,
    query_start_loc,
    seq_lens,
    requests,
    ends,
    slots,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(0)
    start = tl.load(query_start_loc + request)
    num_new = tl.load(query_start_loc + request + 1) - start
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_new = index < num_new
    position = tl.load(seq_lens + request) - num_new + index
    row = row_of(rows, request, width)
    column = HEADER + tl.load(row + 1) + position // BLOCK_SIZE
    # Rows that vLLM makes up to warm up have no header; nothing may be written by them.
    is_there = is_new & (column < width)
    block = tl.load(row + column, mask=is_there, other=0).to(tl.int64)
    slot = tl.where(is_there, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(requests + start + index, request, mask=is_new)
    tl.store(ends + start + index, position + 1, mask=is_new)
    tl.store(slots + start + index, slot, mask=is_new)
