# SPDX-License-Identifier: Apache-2.0
"""Plans a step on a CPU: it reads the rows of the requests, and decides what each token does.

Per-request and per-token arrays are NumPy arrays. A decode step needs many calls on small arrays,
and such calls are much faster in NumPy than in torch.
"""

from dataclasses import replace

import numpy as np
import torch

from headkv_vllm.arrays import BoolArray, IntArray
from headkv_vllm.budgets.request import full_blocks
from headkv_vllm.cache.batch import Batch, CompressedTokens, DenseTokens, Indices
from headkv_vllm.cache.block_row import (
    HEADER_SIZE,
    dense_block_table,
    num_compressed_blocks,
    num_prompt_tokens,
    slot_mapping,
)
from headkv_vllm.cache.compression import PromptCompression, prompt_compression
from headkv_vllm.cache.head_block_tables import HeadBlockTables
from headkv_vllm.cache.row_allocations import RowAllocations


class BatchPlanner:
    """Plans the steps of one worker. L and H are this worker's own layers and KV heads."""

    def __init__(
        self,
        allocations: RowAllocations,
        num_layers: int,
        num_kv_heads: int,
        block_size: int,
        window: int,
    ) -> None:
        self._allocations = allocations
        self._tables = HeadBlockTables(allocations, num_layers, num_kv_heads, block_size)
        self._num_kv_heads = num_kv_heads
        self._block_size, self._window = block_size, window
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
        if not num_compressed_blocks(rows).any():
            return Batch(slots, self._all_dense(block_table, query_start_loc, seq_lens), (), None)
        is_compressed = (num_compressed_blocks(rows) > 0) & (computed >= num_prompt_tokens(rows))
        if len(positions) == len(rows) and is_compressed.all():
            batch = Batch(slots, None, (), self._all_compressed(rows, ends))
            self._decode_run = _DecodeRun(batch, rows, starts, ends, self._block_size)
            return batch
        return Batch(
            slots,
            self._dense(block_table, query_start_loc, seq_lens, query_lens, ~is_compressed),
            self._compressions(rows, starts, computed, ends),
            self._compressed(rows, ends, query_lens, is_compressed),
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
        num_compressed = num_compressed_blocks(block_table.numpy())
        first = int(num_compressed[0])
        if (num_compressed == first).all():
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

    def _compressions(
        self, rows: IntArray, starts: IntArray, computed: IntArray, seq_lens: IntArray
    ) -> tuple[PromptCompression, ...]:
        lengths = num_prompt_tokens(rows)
        completes = (computed < lengths) & (seq_lens >= lengths)
        requests = np.flatnonzero(completes & (num_compressed_blocks(rows) > 0)).tolist()
        is_end = seq_lens[requests] == lengths[requests]
        assert is_end.all(), "a chunk ends with a prompt that is compressed"
        return tuple(
            prompt_compression(
                rows[request, :HEADER_SIZE],
                torch.from_numpy(rows[request]),
                self._allocations,
                full_blocks(int(lengths[request]), self._window, self._block_size),
                self._block_size,
                int(starts[request + 1]) - self._window,
            )
            for request in requests
        )


class _DecodeRun:
    """Consecutive steps that decode one token of each of the same compressed requests.

    Most steps are like the step before: each of the same requests decodes one token, and its last
    block has room for the token. Then only slots and lengths change, by one, and the block tables
    stay valid.
    """

    def __init__(
        self, batch: Batch, rows: IntArray, starts: IntArray, seq_lens: IntArray, block_size: int
    ) -> None:
        """batch: of the first step. rows: [num_reqs, width]. seq_lens: [num_reqs].
        starts: [num_reqs + 1], the step's `query_start_loc`.

        The arrays are copied, because vLLM reuses their memory for the next step.
        """
        self._batch = batch
        self._rows, self._starts, self._seq_lens = rows.copy(), starts.copy(), seq_lens.copy()
        self._max_seq_lens = -(-seq_lens // block_size) * block_size

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
            (),
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
