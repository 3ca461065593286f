# SPDX-License-Identifier: Apache-2.0
"""Reads off a step's rows what the step does.

What concerns requests and tokens is computed on the host, in NumPy, whose calls on a handful of
numbers cost a fraction of torch's; a decode step's time is made up of such calls.
"""

import numpy as np
import numpy.typing as npt
import torch

from headkv_vllm.batch import (
    Batch,
    Compression,
    HeadTokens,
    Indices,
    WholeTokens,
)
from headkv_vllm.block_row import (
    HEADER_SIZE,
    IntArray,
    compressed_blocks,
    num_compressed_blocks,
    num_prompt_tokens,
    slot_mapping,
    token_block_table,
)
from headkv_vllm.budgets.request import full_blocks
from headkv_vllm.decode_run import DecodeRun
from headkv_vllm.head_tables import HeadTables
from headkv_vllm.row_allotments import RowAllotments

BoolArray = npt.NDArray[np.bool_]


class BatchPlanner:
    """Plans steps for one worker: L layers with H KV heads each, both of this worker alone."""

    def __init__(
        self,
        allotments: RowAllotments,
        num_layers: int,
        num_kv_heads: int,
        block_size: int,
        window: int,
    ) -> None:
        self._allotments = allotments
        self._tables = HeadTables(allotments, num_layers, num_kv_heads, block_size)
        self._num_kv_heads = num_kv_heads
        self._block_size, self._window = block_size, window
        self._decode_run: DecodeRun | None = None

    def plan(
        self, block_table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> Batch:
        """Plan one step.

        block_table: [num_reqs, width] int32 rows. query_start_loc: [num_reqs + 1] int32.
        seq_lens: [num_reqs] int32, the tokens of each request up to the end of this step.
        No step completes a prompt that is to be compressed and goes on with its request.
        Returns the last step's batch, changed in place, where this step only goes on with it.
        """
        rows, starts, ends = (t.numpy() for t in (block_table, query_start_loc, seq_lens))
        if self._decode_run and (batch := self._decode_run.advance(rows, starts, ends)):
            return batch
        self._decode_run = None
        query_lens = starts[1:] - starts[:-1]
        computed = ends - query_lens
        requests, positions = _tokens(starts, computed, ends)
        slots = torch.from_numpy(slot_mapping(rows, requests, positions, self._block_size))
        if not num_compressed_blocks(rows).any():
            return Batch(slots, self._all_whole(block_table, query_start_loc, seq_lens), (), None)
        is_by_head = (num_compressed_blocks(rows) > 0) & (computed >= num_prompt_tokens(rows))
        if len(positions) == len(rows) and is_by_head.all():
            batch = Batch(slots, None, (), self._all_by_head(rows, ends))
            self._decode_run = DecodeRun(batch, rows, starts, ends, self._block_size)
            return batch
        return Batch(
            slots,
            self._whole(block_table, query_start_loc, seq_lens, query_lens, ~is_by_head),
            self._compressions(rows, starts, computed, ends),
            self._by_head(rows, ends, query_lens, is_by_head),
        )

    def check_integrity(self) -> None:
        """The tables kept between steps are right."""
        self._tables.check_integrity()

    def _whole(
        self,
        block_table: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        query_lens: IntArray,
        is_whole: BoolArray,
    ) -> WholeTokens | None:
        if is_whole.all():
            return self._all_whole(block_table, query_start_loc, seq_lens)
        if not is_whole.any():
            return None
        requests = _indices(np.flatnonzero(is_whole))
        lengths = seq_lens[requests]
        return WholeTokens(
            _indices(np.flatnonzero(is_whole.repeat(query_lens))),
            _start_loc(query_lens[is_whole]),
            lengths,
            self._token_blocks(block_table[requests], lengths),
        )

    def _all_whole(
        self, block_table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> WholeTokens:
        tokens = slice(0, int(query_start_loc[-1]))
        blocks = self._token_blocks(block_table, seq_lens)
        return WholeTokens(tokens, query_start_loc, seq_lens, blocks)

    def _token_blocks(self, block_table: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        num_compressed = num_compressed_blocks(block_table.numpy())
        first = int(num_compressed[0])
        if (num_compressed == first).all():
            return block_table[:, HEADER_SIZE + first :]
        return token_block_table(block_table, -(-int(seq_lens.max()) // self._block_size))

    def _all_by_head(self, rows: IntArray, seq_lens: IntArray) -> HeadTokens:
        """Every request decodes one token, and nothing else is in the batch."""
        num_rows = len(rows) * self._num_kv_heads
        starts = torch.arange(num_rows + 1, dtype=torch.int32)
        return HeadTokens(slice(0, num_rows), starts, *self._tables.update(rows, seq_lens))

    def _by_head(
        self, rows: IntArray, seq_lens: IntArray, query_lens: IntArray, is_by_head: BoolArray
    ) -> HeadTokens | None:
        if not is_by_head.any():
            return None
        lengths, tables = self._tables.update(rows[is_by_head], seq_lens[is_by_head])
        num_tokens = query_lens[is_by_head]
        starts = _start_loc(num_tokens.repeat(self._num_kv_heads))
        head_rows = self._head_rows(np.flatnonzero(is_by_head.repeat(query_lens)), num_tokens)
        return HeadTokens(head_rows, starts, lengths, tables)

    def _head_rows(self, tokens: IntArray, num_tokens: IntArray) -> Indices:
        """The rows [token * H + head] in the order of (request, head, token)."""
        num_kv_heads = self._num_kv_heads
        if num_tokens.max() == 1:
            return _indices((tokens[:, None] * num_kv_heads + np.arange(num_kv_heads)).ravel())
        by_request = np.split(tokens * num_kv_heads, num_tokens.cumsum()[:-1])
        heads = np.arange(num_kv_heads)[:, None]
        return _indices(np.concatenate([(tokens + heads).ravel() for tokens in by_request]))

    def _compressions(
        self, rows: IntArray, starts: IntArray, computed: IntArray, seq_lens: IntArray
    ) -> tuple[Compression, ...]:
        lengths = num_prompt_tokens(rows)
        completes = (computed < lengths) & (seq_lens >= lengths)
        requests = np.flatnonzero(completes & (num_compressed_blocks(rows) > 0))
        offsets = starts[:-1] - computed
        return tuple(
            self._compression(rows[request], int(offsets[request]), int(seq_lens[request]))
            for request in requests.tolist()
        )

    def _compression(self, row: IntArray, offset: int, seq_len: int) -> Compression:
        """offset: what turns a position of this request into an index of the batch."""
        length, num_compressed = int(row[0]), int(row[1])
        assert seq_len == length, "a step goes on after a prompt that it compresses"
        num_head_blocks = torch.tensor(self._allotments.planned(row))
        first, num_blocks = HEADER_SIZE + num_compressed, -(-length // self._block_size)
        return Compression(
            offset + length - self._window,
            length,
            full_blocks(length, self._window, self._block_size) * self._block_size,
            torch.from_numpy(row[first : first + num_blocks]).long(),
            tuple(compressed_blocks(row).tolist()),
            self._allotments.policy(row),
            num_head_blocks,
            self._slots(row, num_head_blocks),
        )

    def _slots(self, row: IntArray, num_head_blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads_per_block = num_head_blocks.numel()
        blocks = torch.from_numpy(compressed_blocks(row)).long()
        dealt = blocks[:, None] * heads_per_block + torch.arange(heads_per_block)
        slots = dealt.view(-1, 1) * self._block_size + torch.arange(self._block_size)
        per_layer = (num_head_blocks.sum(1) * self._block_size).tolist()
        return torch.split(slots.flatten(), per_layer)


def _tokens(starts: IntArray, computed: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Each token's request and its position there: two of [num_tokens]."""
    num_reqs, num_tokens = len(ends), int(starts[-1])
    if num_tokens == num_reqs:  # every request decodes one token
        return np.arange(num_reqs), computed
    requests = np.arange(num_reqs).repeat(ends - computed)
    return requests, np.arange(num_tokens) - (starts[:-1] - computed)[requests]


def _indices(places: IntArray) -> Indices:
    """`places`, ascending but for rows by head, as a slice where each is the last one's next."""
    first, num_places = int(places[0]), len(places)
    if int(places[-1]) - first + 1 == num_places and (np.diff(places) == 1).all():
        return slice(first, first + num_places)
    return torch.from_numpy(places)


def _start_loc(lengths: IntArray) -> torch.Tensor:
    """[n] lengths to [n + 1] int32 starts."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return torch.from_numpy(starts)
