# SPDX-License-Identifier: Apache-2.0
"""Plans a step on a CPU: it reads the rows of the requests, and decides what each token does.

Per-request and per-token arrays are NumPy arrays. A decode step needs many calls on small arrays,
and such calls are much faster in NumPy than in torch.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from headkv_vllm.arrays import BoolArray, IntArray
from headkv_vllm.cache.batch import Batch, CompressedTokens, DenseTokens, Indices, WaitingQueries
from headkv_vllm.cache.block_row import (
    HEADER_SIZE,
    dense_block_table,
    intervals,
    num_private_blocks,
    num_prompt_tokens,
    slot_mapping,
)
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.head_block_tables import HeadBlockTables
from headkv_vllm.cache.request_compression import RequestCompression, request_compression
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.cache.window_queries import window_places

CompressAgain = Callable[[RequestCompression, torch.Tensor], None]
"""Compresses a request now. Its second argument is [Q] int64, the blocks of its queries."""


class BatchPlanner:
    """Plans the steps of one worker. L and H are this worker's own layers and KV heads."""

    def __init__(
        self,
        allocations: RowAllocations,
        num_layers: int,
        num_kv_heads: int,
        compress_again: CompressAgain,
        queries_per_block: int,
    ) -> None:
        """compress_again: is called before the step is planned, for each request at a compression
            point, unless its prompt ends there: that is compressed after the step's attention.
        queries_per_block: see `budgets.request`.
        """
        self._points = allocations.points
        block_size, self._window = self._points.block_size, self._points.window
        self._compress_again, self._queries_per_block = compress_again, queries_per_block
        self._allocations = allocations
        self._tables = HeadBlockTables(allocations, num_layers, num_kv_heads, block_size)
        self._num_kv_heads = num_kv_heads
        self._block_size = block_size
        self._decode_run: _DecodeRun | None = None

    def plan(
        self, block_table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> Batch:
        """Plan one step.

        block_table: [num_reqs, width] int32, rows. query_start_loc: [num_reqs + 1] int32.
        seq_lens: [num_reqs] int32, the tokens of each request up to the end of this step.
        A step that completes a prompt to compress must not compute later tokens of the request.
        """
        rows, starts, ends = (t.numpy() for t in (block_table, query_start_loc, seq_lens))
        if self._decode_run and (batch := self._decode_run.next(rows, starts, ends)):
            return batch
        self._decode_run = None
        query_lens = starts[1:] - starts[:-1]
        computed = ends - query_lens
        requests, positions = _tokens(starts, computed, ends)
        slots = torch.from_numpy(slot_mapping(rows, requests, positions, self._block_size))
        is_private = num_private_blocks(rows) > 0
        if not is_private.any():
            return Batch(slots, self._all_dense(block_table, query_start_loc, seq_lens))
        is_compressed = is_private & (computed >= self._points.first(rows))
        waiting = None
        if intervals(rows).any():
            self._compress_due(rows, computed)
            waiting = self._waiting_queries(rows, requests, positions)
        if len(positions) == len(rows) and is_compressed.all():
            compressed = self._all_compressed(rows, ends)
            batch = Batch(slots, None, compressed, waiting=waiting)
            if waiting is None:
                self._decode_run = _DecodeRun(batch, rows, starts, ends, self._points)
            return batch
        completed, window_starts = self._completed_prompts(rows, starts, computed, ends)
        return Batch(
            slots,
            self._dense(block_table, query_start_loc, seq_lens, query_lens, ~is_compressed),
            self._compressed(rows, ends, query_lens, is_compressed),
            completed,
            window_starts,
            waiting,
        )

    def check_integrity(self) -> None:
        """Check the tables that are kept between steps."""
        self._tables.check_integrity()

    def _dense(
        self,
        block_table: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        query_lens: IntArray,
        is_dense: BoolArray,
    ) -> DenseTokens | None:
        if is_dense.all():
            return self._all_dense(block_table, query_start_loc, seq_lens)
        if not is_dense.any():
            return None
        requests = _indices(np.flatnonzero(is_dense))
        lengths = seq_lens[requests]
        return DenseTokens(
            _indices(np.flatnonzero(is_dense.repeat(query_lens))),
            _start_loc(query_lens[is_dense]),
            lengths,
            self._dense_blocks(block_table[requests], lengths),
        )

    def _all_dense(
        self, block_table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> DenseTokens:
        tokens = slice(0, int(query_start_loc[-1]))
        blocks = self._dense_blocks(block_table, seq_lens)
        return DenseTokens(tokens, query_start_loc, seq_lens, blocks)

    def _dense_blocks(self, block_table: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        num_private = num_private_blocks(block_table.numpy())
        first = int(num_private[0])
        if (num_private == first).all():
            return block_table[:, HEADER_SIZE + first :]
        return dense_block_table(block_table, -(-int(seq_lens.max()) // self._block_size))

    def _all_compressed(self, rows: IntArray, seq_lens: IntArray) -> CompressedTokens:
        """The tokens of a batch in which every request decodes one compressed token."""
        num_seqs = len(rows) * self._num_kv_heads
        starts = torch.arange(num_seqs + 1, dtype=torch.int32)
        return CompressedTokens(slice(0, num_seqs), starts, *self._tables.update(rows, seq_lens))

    def _compressed(
        self, rows: IntArray, seq_lens: IntArray, query_lens: IntArray, is_compressed: BoolArray
    ) -> CompressedTokens | None:
        if not is_compressed.any():
            return None
        lengths, tables = self._tables.update(rows[is_compressed], seq_lens[is_compressed])
        num_tokens = query_lens[is_compressed]
        starts = _start_loc(num_tokens.repeat(self._num_kv_heads))
        tokens = np.flatnonzero(is_compressed.repeat(query_lens))
        return CompressedTokens(self._head_indices(tokens, num_tokens), starts, lengths, tables)

    def _head_indices(self, tokens: IntArray, num_tokens: IntArray) -> Indices:
        """The indices token * H + head, in the order of (request, head, token)."""
        num_kv_heads = self._num_kv_heads
        if num_tokens.max() == 1:
            return _indices((tokens[:, None] * num_kv_heads + np.arange(num_kv_heads)).ravel())
        by_request = np.split(tokens * num_kv_heads, num_tokens.cumsum()[:-1])
        heads = np.arange(num_kv_heads)[:, None]
        return _indices(np.concatenate([(tokens + heads).ravel() for tokens in by_request]))

    def _completed_prompts(
        self, rows: IntArray, starts: IntArray, computed: IntArray, seq_lens: IntArray
    ) -> tuple[tuple[RequestCompression, ...], tuple[int, ...]]:
        """The prompts that the step completes and compresses, and where their windows begin."""
        lengths = num_prompt_tokens(rows)
        completes = (computed < lengths) & (seq_lens >= lengths)
        is_at_end = (num_private_blocks(rows) > 0) & (self._points.first(rows) == lengths)
        requests = np.flatnonzero(completes & is_at_end).tolist()
        assert (seq_lens[requests] == lengths[requests]).all(), (
            "a chunk ends with a prompt that is compressed"
        )
        compressions = tuple(self._compression(rows, r, int(lengths[r])) for r in requests)
        return compressions, tuple(int(starts[r + 1]) - self._window for r in requests)

    def _compress_due(self, rows: IntArray, computed: IntArray) -> None:
        """Compress the requests that are at a compression point after their prompts."""
        for request in np.flatnonzero(self._points.are_due(rows, computed)).tolist():
            compression = self._compression(rows, request, int(computed[request]))
            self._compress_again(compression, torch.from_numpy(self._query_blocks(rows[request])))

    def _compression(self, rows: IntArray, request: int, num_tokens: int) -> RequestCompression:
        row = rows[request]
        return request_compression(row, torch.from_numpy(row), self._allocations, num_tokens)

    def _query_blocks(self, row: IntArray) -> IntArray:
        """[Q] int64, the private blocks of a request that hold queries."""
        first, end = self._points.num_compressed_blocks(row), num_private_blocks(row)
        return row[HEADER_SIZE + int(first) : HEADER_SIZE + int(end)].astype(np.int64)

    def _waiting_queries(
        self, rows: IntArray, requests: IntArray, positions: IntArray
    ) -> WaitingQueries | None:
        """The tokens of observation windows whose compression comes in a later step."""
        ends = positions + 1
        of_tokens = rows[requests, :HEADER_SIZE]
        points = self._points.next(of_tokens, ends)
        is_own = (intervals(of_tokens) > 0) & ~self._points.is_by_prompt(of_tokens, points)
        tokens = np.flatnonzero(is_own & (positions >= points - self._window))
        if len(tokens) == 0:
            return None
        blocks = np.stack([self._query_blocks(rows[request]) for request in requests[tokens]])
        indices = positions[tokens] - (points[tokens] - self._window)
        places = window_places(blocks, indices, self._queries_per_block)
        return WaitingQueries(_indices(tokens), torch.from_numpy(places))


class _DecodeRun:
    """Consecutive steps that decode one token of each of the same compressed requests.

    Most steps are like the step before: each of the same requests decodes one token, and its last
    block has room for the token. Then only slots and lengths change, by one, and the block tables
    stay valid.
    """

    def __init__(
        self,
        batch: Batch,
        rows: IntArray,
        starts: IntArray,
        seq_lens: IntArray,
        points: CompressionPoints,
    ) -> None:
        """batch: of the first step. rows: [num_reqs, width]. seq_lens: [num_reqs].
        starts: [num_reqs + 1], the step's `query_start_loc`.

        The arrays are copied, because vLLM reuses their memory for the next step.
        """
        self._batch = batch
        self._rows, self._starts, self._seq_lens = rows.copy(), starts.copy(), seq_lens.copy()
        max_seq_lens = -(-seq_lens // points.block_size) * points.block_size
        # The queries of an observation window wait for a compression, so its steps are others.
        window_starts = points.next(rows, seq_lens) - points.window
        self._max_seq_lens = np.minimum(max_seq_lens, window_starts)

    def next(self, rows: IntArray, starts: IntArray, seq_lens: IntArray) -> Batch | None:
        """The batch of the next step; None if the next step is of another kind."""
        next_lens = self._seq_lens + 1
        if (
            rows.shape != self._rows.shape
            or not np.array_equal(seq_lens, next_lens)
            or not np.array_equal(starts, self._starts)
            or (next_lens > self._max_seq_lens).any()
            or not np.array_equal(rows, self._rows)
        ):
            return None
        compressed = self._batch.compressed
        assert compressed is not None, "a decode step has compressed tokens"
        self._seq_lens = next_lens
        self._batch = Batch(
            self._batch.slot_mapping + 1,
            None,
            replace(compressed, seq_lens=compressed.seq_lens + 1),
            continues_last=True,
        )
        return self._batch


def _tokens(starts: IntArray, computed: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """The request of each token, and its position in the request: two arrays of [num_tokens]."""
    num_reqs, num_tokens = len(ends), int(starts[-1])
    if num_tokens == num_reqs:  # every request decodes one token
        return np.arange(num_reqs), computed
    requests = np.arange(num_reqs).repeat(ends - computed)
    return requests, np.arange(num_tokens) - (starts[:-1] - computed)[requests]


def _indices(indices: IntArray) -> Indices:
    """`indices` as a slice if they are consecutive, or as a tensor."""
    first, num_indices = int(indices[0]), len(indices)
    if int(indices[-1]) - first + 1 == num_indices and (np.diff(indices) == 1).all():
        return slice(first, first + num_indices)
    return torch.from_numpy(indices)


def _start_loc(lengths: IntArray) -> torch.Tensor:
    """The cumulative sum of lengths [n]: [n + 1] int32, from 0."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return torch.from_numpy(starts)
