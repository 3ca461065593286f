# SPDX-License-Identifier: Apache-2.0
"""Cuts the attention of heads of very different lengths into pieces of one length."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.rows import (
    DeviceRows,
    DeviceTokens,
    attended_tokens,
    kept_blocks_of,
    replaced_blocks_of,
    row_of,
)

PIECE = 64
"""Entries that a program reads at once; pieces are a multiple of it."""


PROGRAMS_PER_PROCESSOR = 8


def num_programs_of(device: torch.device) -> int:
    """Into how many pieces a layer is cut on `device`, besides one for each sequence."""
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return PROGRAMS_PER_PROCESSOR * processors


@dataclass(frozen=True)
class WorkList:
    """For each layer, which piece of which sequence is whose; a sequence is a (token, KV head).

    seq_lens: [L, num_seqs] int32, entries that each attends; 0 for tokens that fill a batch up.
    first_piece: [L, num_seqs + 1] int32, of each sequence, and the number of all pieces.
    sequences: [L, most_pieces] int32, of each piece; without meaning beyond the last.
    piece_len: [L] int32, entries of a piece.
    """

    seq_lens: torch.Tensor
    first_piece: torch.Tensor
    sequences: torch.Tensor
    piece_len: torch.Tensor


def work_list(
    rows: DeviceRows, tokens: DeviceTokens, num_programs: int, buffers: Buffers
) -> WorkList:
    """The pieces of a layer come to at most `num_programs`, and one for each sequence besides; all
    in `buffers`.
    """
    num_seqs = len(tokens.requests) * rows.num_kv_heads
    num_layers = rows.num_layers
    work = WorkList(
        buffers.take("seq_lens", num_layers, num_seqs),
        buffers.take("first_piece", num_layers, num_seqs + 1),
        buffers.take("sequences", num_layers, num_seqs + num_programs),
        buffers.take("piece_len", num_layers),
    )
    _cut[(rows.num_layers,)](
        rows.rows,
        rows.rows.stride(0),
        rows.first,
        tokens.requests,
        tokens.ends,
        work.seq_lens,
        work.first_piece,
        work.sequences,
        work.piece_len,
        num_seqs,
        num_programs,
        NUM_KV_HEADS=rows.num_kv_heads,
        NUM_HEADS=rows.num_heads_of_all_layers,
        LANES=triton.next_power_of_2(num_seqs),
        WINDOW=rows.window,
        BLOCK_SIZE=rows.block_size,
        PIECE=PIECE,
    )
    return work


def work_list_plain(
    rows: DeviceRows, tokens: DeviceTokens, num_programs: int, buffers: Buffers
) -> WorkList:
    """Plain twin of `work_list`; places without meaning hold 0."""
    num_seqs = len(tokens.requests) * rows.num_kv_heads
    lengths, firsts, sequences, piece_lens = [], [], [], []
    for layer in range(rows.num_layers):
        attended = [
            entries if end else 0
            for request, end in zip(tokens.requests.tolist(), tokens.ends.tolist(), strict=True)
            for entries in attended_tokens(rows, request, end, layer)
        ]
        piece_len = max(1, -(-sum(attended) // (num_programs * PIECE))) * PIECE
        owners = [s for s, length in enumerate(attended) for _ in range(0, length, piece_len)]
        first = [sum(owner < s for owner in owners) for s in range(num_seqs + 1)]
        lengths.append(attended)
        firsts.append(first)
        sequences.append(owners + [0] * (num_seqs + num_programs - len(owners)))
        piece_lens.append(piece_len)
    columns = (lengths, firsts, sequences, piece_lens)
    return WorkList(*(torch.tensor(values, dtype=torch.int32) for values in columns))


@triton.jit(do_not_specialize=["width", "num_seqs"])
def _cut(
    rows,
    width,
    first,
    requests,
    ends,
    seq_lens,
    first_piece,
    sequences,
    piece_lens,
    num_seqs,
    num_programs,
    NUM_KV_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    LANES: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """One program for each layer, one lane for each sequence."""
    layer = tl.program_id(0)
    sequence = tl.arange(0, LANES)
    token = sequence // NUM_KV_HEADS
    is_used = sequence < num_seqs
    request = tl.load(requests + token, mask=is_used, other=0)
    end = tl.load(ends + token, mask=is_used, other=0)
    replaced = replaced_blocks_of(row_of(rows, request, width), end, is_used, WINDOW, BLOCK_SIZE)
    head = request.to(tl.int64) * (NUM_HEADS + 1) + layer * NUM_KV_HEADS + sequence % NUM_KV_HEADS
    kept = kept_blocks_of(first + head, replaced, is_used)
    length = end + (kept - replaced) * BLOCK_SIZE

    piece_len = tl.maximum(tl.cdiv(tl.sum(length, 0), num_programs * PIECE), 1) * PIECE
    num_pieces = tl.cdiv(length, piece_len)
    last = tl.cumsum(num_pieces, 0)
    own = layer * (num_seqs + num_programs)
    for piece in range(tl.max(num_pieces, 0)):
        place = own + last - num_pieces + piece
        tl.store(sequences + place, sequence, mask=is_used & (piece < num_pieces))
    tl.store(seq_lens + layer * num_seqs + sequence, length, mask=is_used)
    first_piece += layer * (num_seqs + 1)
    tl.store(first_piece, 0)
    tl.store(first_piece + 1 + sequence, last, mask=is_used)
    tl.store(piece_lens + layer, piece_len)
