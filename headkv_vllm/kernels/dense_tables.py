# SPDX-License-Identifier: Apache-2.0
"""The blocks of prompts that are being read, as kernels for paged attention want them."""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import Chunks, DeviceRows
from headkv_vllm.kernels.rows import HEADER, replaced_blocks_of, row_of

BLOCK_COLUMNS: Final = 1024


@dataclass(frozen=True)
class DenseTables:
    """All heads of a request attend the same blocks as long as nothing of it is compressed.

    block_table: [num_reqs, max_blocks] int32, the blocks of each request's tokens. seq_lens:
    [num_reqs] int32, up to the end of this step. Requests whose tokens attend by head, or that
    are not in `chunks`, have one entry, in the null block: kernels may reject length 0.
    """

    block_table: torch.Tensor
    seq_lens: torch.Tensor


def dense_tables(rows: DeviceRows, chunks: Chunks) -> DenseTables:
    """Of a step with `chunks`."""
    width = triton.cdiv(chunks.max_seq_len, rows.block_size)
    block_table = torch.zeros((len(rows.rows), width), dtype=torch.int32, device=rows.rows.device)
    seq_lens = torch.ones_like(block_table[:, 0])
    _list_blocks[(len(chunks.requests), triton.cdiv(width, BLOCK_COLUMNS))](
        rows.rows,
        rows.rows.stride(0),
        chunks.requests,
        chunks.query_start_loc,
        chunks.seq_lens,
        block_table,
        width,
        seq_lens,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
    )
    return DenseTables(block_table, seq_lens)


@triton.jit(do_not_specialize=["width", "max_blocks"])
def _list_blocks(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    block_table,
    max_blocks,
    new_seq_lens,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One program for each chunk and block of its columns."""
    request = tl.load(requests + tl.program_id(0))
    row = row_of(rows, request, width)
    seq_len = tl.load(seq_lens + request)
    num_new = tl.load(query_start_loc + request + 1) - tl.load(query_start_loc + request)
    if replaced_blocks_of(row, seq_len - num_new + 1, True, WINDOW, BLOCK_SIZE) > 0:
        return
    index = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_used = index < tl.cdiv(seq_len, BLOCK_SIZE)
    block = tl.load(row + HEADER + tl.load(row + 1) + index, mask=is_used, other=0)
    own = block_table + request.to(tl.int64) * max_blocks
    tl.store(own + index, block, mask=is_used)
    tl.store(new_seq_lens + request, seq_len)
