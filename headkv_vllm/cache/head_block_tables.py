# SPDX-License-Identifier: Apache-2.0
"""Block tables of KV heads: each KV head of a compressed request is a sequence of its own.

Head block ``(b, l, h)`` is the part of block `b` that belongs to layer `l` and KV head `h`. The
cache stores blocks outermost, then layers, then heads. So this head block has the index
``(b*L + l)*H + h`` in one flat array. The compressed blocks of a request have K*L*H head blocks.
They are allocated to the heads in the order of ``(l, h)``: the first n[0, 0] to head (0, 0), the
next n[0, 1] to head (0, 1), and so on.
"""

from typing import Final

import numpy as np
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.cache.block_row import HEADER_SIZE
from headkv_vllm.cache.row_allocations import RowAllocations

SPARE_COLUMNS: Final = 32
"""Columns that are added when the tables must grow, so that they rarely grow."""

LayerTables = tuple[torch.Tensor, ...]
"""Block tables of all layers: L x [num_reqs * H, width] int32."""


def head_seq_lens(
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """How many entries each head of a compressed request attends.

    num_head_blocks: [num_reqs, L, H] int32, n: how many head blocks each head keeps.
    num_full_blocks: [num_reqs] int32, F: how many blocks of tokens they replace.
    seq_lens: [num_reqs] int32, the number of tokens of each request.
    Returns [L, num_reqs * H] int32: n * block_size + (seq_len - F * block_size).
    """
    kept = num_head_blocks - num_full_blocks[:, None, None]
    return (kept * block_size + seq_lens[:, None, None]).transpose(0, 1).flatten(1).int()


def head_block_tables(
    block_table: torch.Tensor,
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """Block tables in which each head of a compressed request is a sequence of its own.

    block_table: [num_reqs, width] int32, rows. The other arguments are those of `head_seq_lens`.
    Returns [L, num_reqs * H, table_width] int32, indices of head blocks: first the n[l, h] that
    the head keeps, then those of the request's blocks from index F on. The rest is filled with 0.
    """
    num_reqs, num_layers, num_kv_heads = num_head_blocks.shape
    heads_per_block = num_layers * num_kv_heads
    kept = num_head_blocks.reshape(num_reqs, heads_per_block, 1).long()
    first = kept.cumsum(1) - kept
    num_tail_blocks = (seq_lens - num_full_blocks * block_size + block_size - 1) // block_size
    lengths = kept + num_tail_blocks[:, None, None]

    index = torch.arange(int(lengths.max()))
    head_block = first + index
    is_kept = index < kept
    first_tail = block_table[:, 1] + num_full_blocks
    tail_column = first_tail[:, None, None] + index - kept
    column = HEADER_SIZE + torch.where(is_kept, head_block // heads_per_block, tail_column)
    column.clamp_(max=block_table.shape[1] - 1)
    layer_head = torch.arange(heads_per_block)[:, None]
    within = torch.where(is_kept, head_block % heads_per_block, layer_head)
    blocks = block_table.gather(1, column.flatten(1)).view_as(column)
    tables = torch.where(index < lengths, blocks * heads_per_block + within, 0).int()
    by_layer = tables.view(num_reqs, num_layers, num_kv_heads, -1).transpose(0, 1)
    return by_layer.flatten(1, 2)


class HeadBlockTables:
    """The lengths and block tables of all heads of the requests that decode.

    The tables of a request change when its row changes, once in `block_size` steps, and when the
    request is compressed again. In all other steps only its lengths grow, by one. So this class
    keeps the tables of the last step, and the rows from which they were built. It rebuilds the
    tables of requests whose row differs from the row that was at the same index in the last step.
    """

    def __init__(
        self, allocations: RowAllocations, num_layers: int, num_kv_heads: int, block_size: int
    ) -> None:
        self._allocations, self._block_size = allocations, block_size
        self._num_layers, self._num_kv_heads = num_layers, num_kv_heads
        self._generation = allocations.adaptive.generation
        self._reset(0, 0)

    def update(self, rows: IntArray, seq_lens: IntArray) -> tuple[torch.Tensor, LayerTables]:
        """The lengths and the block tables for one step.

        rows: [num_reqs, width] int32. seq_lens: [num_reqs] int32, the tokens of each request.
        Returns the lengths, [L, num_reqs * H] int32, and the tables, L x [num_reqs * H, width]
        int32: those of `head_seq_lens` and `head_block_tables`, except that entries after a head's
        length have no meaning. The tables are views, and the next call changes them.
        """
        num_reqs = len(rows)
        if num_reqs > len(self._rows) or rows.shape[1] != self._rows.shape[1]:
            self._reset(max(num_reqs, 2 * len(self._rows)), rows.shape[1])
        if self._generation != self._allocations.adaptive.generation:
            # A prompt has decided an allocation. The rows do not show whose prompt it was, so all
            # tables are rebuilt.
            self._generation = self._allocations.adaptive.generation
            self._max_seq_lens[:] = 0
        is_valid = (
            (rows == self._rows[:num_reqs]).all(1)
            & (seq_lens >= self._min_seq_lens[:num_reqs])
            & (seq_lens <= self._max_seq_lens[:num_reqs])
        )
        if not is_valid.all():
            stale = np.flatnonzero(~is_valid)
            self._rebuild(stale, rows[stale], seq_lens[stale])
        lengths = self._offsets[:, :num_reqs] + torch.from_numpy(seq_lens)[:, None]
        return lengths.flatten(1), self._views(num_reqs)

    def check_integrity(self) -> None:
        """Check that the stored tables equal newly built ones."""
        (valid,) = np.nonzero(self._max_seq_lens)
        if len(valid) == 0 or self._generation != self._allocations.adaptive.generation:
            return
        built, num_entries = self._build(self._rows[valid], self._max_seq_lens[valid])
        tables = self._tables[:, valid].flatten(1, 2)[..., : built.shape[-1]]
        is_used = torch.arange(built.shape[-1]) * self._block_size < num_entries[..., None]
        assert torch.equal(tables[is_used], built[is_used])

    def _reset(self, num_reqs: int, row_width: int) -> None:
        """Drop all tables, and make room for `num_reqs` rows."""
        heads = (self._num_layers, num_reqs, self._num_kv_heads)
        self._rows = np.zeros((num_reqs, row_width), dtype=np.int32)
        self._min_seq_lens = np.zeros(num_reqs, dtype=np.int64)
        self._max_seq_lens = np.zeros(num_reqs, dtype=np.int32)
        """The lengths from which and up to which a request's tables are valid: those of tokens
        after the same compression, up to the same last block. 0 if a request has no tables."""
        self._offsets = torch.zeros(heads, dtype=torch.int32)
        """The length of each head minus the length of its request."""
        self._tables = torch.zeros((*heads, 0), dtype=torch.int32)
        self._views_of: dict[int, LayerTables] = {}

    def _rebuild(self, indices: IntArray, rows: IntArray, seq_lens: IntArray) -> None:
        blocks = -(-seq_lens // self._block_size)
        next_point = self._allocations.points.next(rows, seq_lens)
        max_seq_lens = np.minimum(blocks * self._block_size, next_point).astype(np.int32)
        tables, num_entries = self._build(rows, max_seq_lens)
        width = tables.shape[-1]
        if width > self._tables.shape[-1]:
            more = width + SPARE_COLUMNS - self._tables.shape[-1]
            self._tables = torch.nn.functional.pad(self._tables, (0, more))
            self._views_of.clear()
        by_request = (len(rows), self._num_kv_heads)
        self._tables[:, indices, :, :width] = tables.unflatten(1, by_request)
        offsets = num_entries.unflatten(1, by_request) - torch.from_numpy(max_seq_lens)[:, None]
        self._offsets[:, indices] = offsets
        self._rows[indices] = rows
        self._min_seq_lens[indices] = self._allocations.points.previous(rows, seq_lens) + 1
        self._max_seq_lens[indices] = max_seq_lens

    def _build(self, rows: IntArray, seq_lens: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """The tables [L, num_reqs * H, width] and lengths [L, num_reqs * H], from the rows."""
        allocations = np.stack([self._allocations.allocation(row) for row in rows])
        arrays = (allocations, self._allocations.points.replaced_blocks(rows, seq_lens), seq_lens)
        num_head_blocks, full, ends = (torch.from_numpy(array) for array in arrays)
        size, block_table = self._block_size, torch.from_numpy(rows)
        tables = head_block_tables(block_table, num_head_blocks, full, ends, size)
        return tables, head_seq_lens(num_head_blocks, full, ends, size)

    def _views(self, num_reqs: int) -> LayerTables:
        if num_reqs not in self._views_of:
            shape = (self._num_layers, num_reqs * self._num_kv_heads, self._tables.shape[-1])
            self._views_of[num_reqs] = self._tables[:, :num_reqs].view(shape).unbind()
        return self._views_of[num_reqs]
