# SPDX-License-Identifier: Apache-2.0
"""Requests that compute several tokens in a step: most of them read their prompts."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.block_row import BlockRow
from headkv_vllm.kernels.rows import DeviceRows, row_of


@dataclass(frozen=True)
class Chunks:
    """What the host knows of such requests.

    No chunk goes on beyond the end of a prompt that it began in, if that is to be compressed.

    requests: [num_chunks] int32, their rows. Which of them complete prompts that are to be
        compressed, and which follow compressed ones, only the device can tell.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32, up to the end of this step.
    longest: no request in `requests` comes to more tokens in this step.
    most_new_tokens: nor computes more of them in it.
    """

    requests: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    longest: int
    most_new_tokens: int


@dataclass(frozen=True)
class Completed:
    """A prompt that the step completes and compresses, as plain twins see it.

    window_start: index in the batch of the first token of its window. first: [L*H + 1].
    """

    row: BlockRow
    window_start: int
    num_candidates: int
    first: list[int]


def completed(rows: DeviceRows, chunks: Chunks) -> list[Completed | None]:
    """For each of `chunks.requests`, by counting; None where nothing is to be compressed."""
    found: list[Completed | None] = []
    starts, ends = chunks.query_start_loc.tolist(), chunks.seq_lens.tolist()
    for request in chunks.requests.tolist():
        row = BlockRow.parse(rows.rows[request].tolist())
        length, start = row.num_prompt_tokens, starts[request]
        num_computed = ends[request] - (starts[request + 1] - start)
        if not row.compressed_blocks or not num_computed < length <= ends[request]:
            found.append(None)
            continue
        num_candidates = (length - rows.window) // rows.block_size * rows.block_size
        window_start = start + length - num_computed - rows.window
        found.append(Completed(row, window_start, num_candidates, rows.first[request].tolist()))
    return found


def num_completed(rows: DeviceRows, chunks: Chunks) -> torch.Tensor:
    """How many prompts the step completes and compresses: [] int64, on the device."""
    requests = chunks.requests.long()
    lengths, num_compressed = rows.rows[requests, 0], rows.rows[requests, 1]
    ends = chunks.seq_lens[requests]
    num_computed = ends - chunks.query_start_loc.diff()[requests]
    return ((num_compressed > 0) & (num_computed < lengths) & (lengths <= ends)).sum()


def num_completed_plain(rows: DeviceRows, chunks: Chunks) -> torch.Tensor:
    """Plain twin of `num_completed`."""
    return torch.tensor(sum(one is not None for one in completed(rows, chunks)))


def follows_compressed(rows: DeviceRows, chunks: Chunks, request: int) -> bool:
    """Whether the request's new tokens attend what its heads keep of a prompt, by counting."""
    row = BlockRow.parse(rows.rows[request].tolist())
    starts = chunks.query_start_loc.tolist()
    num_computed = int(chunks.seq_lens[request]) - (starts[request + 1] - starts[request])
    return bool(row.compressed_blocks) and num_computed >= row.num_prompt_tokens


@triton.jit
def window_start_of(row, request, query_start_loc, seq_lens, WINDOW: tl.constexpr):
    """Where the window begins in the batch; -1 where no prompt is to be compressed."""
    start = tl.load(query_start_loc + request)
    num_new = tl.load(query_start_loc + request + 1) - start
    seq_len, length = tl.load(seq_lens + request), tl.load(row)
    num_computed = seq_len - num_new
    is_completed = (tl.load(row + 1) > 0) & (num_computed < length) & (length <= seq_len)
    return tl.where(is_completed, start + length - num_computed - WINDOW, -1)


@triton.jit
def prompt_of(
    rows,
    width,
    requests,
    query_start_loc,
    seq_lens,
    NUM_KV_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Of a program for a (prompt, KV head): its request, its row, and where its window begins."""
    request = tl.load(requests + tl.program_id(0) // NUM_KV_HEADS)
    row = row_of(rows, request, width)
    return request, row, window_start_of(row, request, query_start_loc, seq_lens, WINDOW)


def launch_arguments(rows: DeviceRows, chunks: Chunks) -> tuple[torch.Tensor | int, ...]:
    """What `prompt_of` takes, up to its sizes."""
    locations = (chunks.query_start_loc, chunks.seq_lens)
    return (rows.rows, rows.rows.stride(0), chunks.requests, *locations)
