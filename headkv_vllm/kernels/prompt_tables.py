# SPDX-License-Identifier: Apache-2.0
"""The blocks of prompts that are being read, as kernels for paged attention want them."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import BlockRow
from headkv_vllm.kernels.chunks import Chunks, follows_compressed, launch_arguments
from headkv_vllm.kernels.rows import HEADER, DeviceRows, replaced_blocks_of, row_of

TILE = 1024


@dataclass(frozen=True)
class PromptTables:
    """All heads of a request attend the same blocks as long as nothing of it is compressed.

    block_table: [num_reqs, most blocks] int32, the blocks of each request's tokens. seq_lens:
    [num_reqs] int32, up to the end of this step. Requests whose tokens attend by head, or that
    are not in `chunks`, have one entry, in the null block: a kernel need not take nothing at all.
    """

    block_table: torch.Tensor
    seq_lens: torch.Tensor


def prompt_tables(rows: DeviceRows, chunks: Chunks) -> PromptTables:
    """Of a step with `chunks`."""
    width = triton.cdiv(chunks.longest, rows.block_size)
    block_table = torch.zeros((len(rows.rows), width), dtype=torch.int32, device=rows.rows.device)
    seq_lens = torch.ones_like(block_table[:, 0])
    _list_blocks[(len(chunks.requests), triton.cdiv(width, TILE))](
        *launch_arguments(rows, chunks),
        block_table,
        width,
        seq_lens,
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        TILE=TILE,
    )
    return PromptTables(block_table, seq_lens)


def prompt_tables_plain(rows: DeviceRows, chunks: Chunks) -> PromptTables:
    """Plain twin of `prompt_tables`."""
    width = -(-chunks.longest // rows.block_size)
    tables, seq_lens = [[0] * width for _ in rows.rows], [1] * len(rows.rows)
    for request in chunks.requests.tolist():
        if follows_compressed(rows, chunks, request):
            continue
        seq_lens[request] = int(chunks.seq_lens[request])
        num_blocks = -(-seq_lens[request] // rows.block_size)
        blocks = BlockRow.parse(rows.rows[request].tolist()).blocks
        tables[request][:num_blocks] = blocks[:num_blocks]
    device = rows.rows.device
    columns = (torch.tensor(each, dtype=torch.int32, device=device) for each in (tables, seq_lens))
    return PromptTables(*columns)


@triton.jit(do_not_specialize=["width", "most_blocks"])
def _list_blocks(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    block_table,
    most_blocks,
    new_seq_lens,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each chunk and tile of its blocks."""
    request = tl.load(requests + tl.program_id(0))
    row = row_of(rows, request, width)
    seq_len = tl.load(seq_lens + request)
    num_new = tl.load(query_start_loc + request + 1) - tl.load(query_start_loc + request)
    if replaced_blocks_of(row, seq_len - num_new + 1, True, WINDOW, BLOCK_SIZE) > 0:
        return
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_used = index < tl.cdiv(seq_len, BLOCK_SIZE)
    block = tl.load(row + HEADER + tl.load(row + 1) + index, mask=is_used, other=0)
    own = block_table + request.to(tl.int64) * most_blocks
    tl.store(own + index, block, mask=is_used)
    tl.store(new_seq_lens + request, seq_len)
