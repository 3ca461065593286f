# SPDX-License-Identifier: Apache-2.0
"""Of each token of a step: its request, what it attends, and where its entry is written."""

from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import Buffers, DeviceTokens
from headkv_vllm.kernels.rows import HEADER, row_of

BLOCK_TOKENS: Final = 256


def step_tokens(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    stock_slot_mapping: torch.Tensor,
    max_query_len: int,
    block_size: int,
    buffers: Buffers,
) -> tuple[DeviceTokens, torch.Tensor]:
    """rows: [num_reqs, width] int32. query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs]
    int32, up to the end of this step. stock_slot_mapping: [num_tokens] int64, vLLM's own, which
    takes a row for a plain list of blocks. Only its sign counts: no entry is written for tokens
    with -1, as those of dummy steps have.

    Returns the tokens, and the slot mapping, [num_tokens] int64: block * block_size + offset as
    vLLM counts slots, and -1 for tokens that pad the batch. All are in `buffers`.
    """
    num_reqs, num_tokens = len(seq_lens), len(stock_slot_mapping)
    requests = buffers.take("requests", num_tokens).zero_()
    ends = buffers.take("ends", num_tokens).zero_()
    slot_mapping = buffers.take("slot_mapping", num_tokens, dtype=torch.int64).fill_(-1)
    grid = (num_reqs, triton.cdiv(max_query_len, BLOCK_TOKENS))
    _tokens[grid](
        rows,
        rows.stride(0),
        query_start_loc,
        seq_lens,
        stock_slot_mapping,
        requests,
        ends,
        slot_mapping,
        block_size,
        BLOCK_TOKENS,
    )
    return DeviceTokens(requests, ends), slot_mapping


@triton.jit(do_not_specialize=["width"])
def _tokens(
    rows,
    width,
    query_start_loc,
    seq_lens,
    stock_slot_mapping,
    requests,
    ends,
    slot_mapping,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    request = tl.program_id(0)
    start = tl.load(query_start_loc + request)
    num_new = tl.load(query_start_loc + request + 1) - start
    index = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_new = index < num_new
    position = tl.load(seq_lens + request) - num_new + index
    row = row_of(rows, request, width)
    column = HEADER + tl.load(row + 1) + position // BLOCK_SIZE
    stock_slot = tl.load(stock_slot_mapping + start + index, mask=is_new, other=-1)
    # The rows of dummy steps have no header, and may be those of requests that have ended.
    is_written = (stock_slot >= 0) & (column < width)
    block = tl.load(row + column, mask=is_written, other=0).to(tl.int64)
    slot = tl.where(is_written, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(requests + start + index, request, mask=is_new)
    tl.store(ends + start + index, position + 1, mask=is_new)
    tl.store(slot_mapping + start + index, slot, mask=is_new)
