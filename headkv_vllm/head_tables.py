# SPDX-License-Identifier: Apache-2.0
"""The head-block tables of live requests, kept from one step to the next."""

import numpy as np
import torch

from headkv_vllm.block_row import IntArray, head_block_tables, head_seq_lens
from headkv_vllm.row_allotments import RowAllotments

SPARE_COLUMNS = 32
"""Added to the tables whenever they must grow, so that they seldom must."""

PerLayer = tuple[torch.Tensor, ...]


class HeadTables:
    """Lengths and block tables of every head of the requests that decode.

    A request's tables only change when its row does, which is once in `block_size` steps; in
    all others its lengths grow by one. So the tables of the last step are kept, place by place,
    beside the rows that they were read off, and only places whose row differs are made anew.
    """

    def __init__(
        self, allotments: RowAllotments, num_layers: int, num_kv_heads: int, block_size: int
    ) -> None:
        self._allotments, self._block_size = allotments, block_size
        self._num_layers, self._num_kv_heads = num_layers, num_kv_heads
        self._generation = allotments.live.generation
        self._make_room(0, 0)

    def update(self, rows: IntArray, seq_lens: IntArray) -> tuple[PerLayer, PerLayer]:
        """Lengths and tables for one step, each as one tensor per layer.

        rows: [num_reqs, width] int32. seq_lens: [num_reqs] int32, tokens of each request.
        Returns seq_lens, L x [num_reqs * H] int32, and block tables, L x [num_reqs * H, width]
        int32, as `head_seq_lens` and `head_block_tables` make them; but entries past a head's
        length have no meaning. The tables are views of what the next call changes.
        """
        num_reqs = len(rows)
        num_full = self._allotments.num_full_blocks(rows)
        num_tail = -(-(seq_lens - num_full * self._block_size) // self._block_size)
        if num_reqs > len(self._rows) or rows.shape[1] != self._rows.shape[1]:
            self._make_room(max(num_reqs, 2 * len(self._rows)), rows.shape[1])
        stale = self._stale(rows, num_tail)
        if len(stale):
            self._rebuild(stale, rows[stale], num_full[stale], seq_lens[stale])
            self._rows[stale], self._num_tail[stale] = rows[stale], num_tail[stale]
        lengths = self._lengths[:, :num_reqs] + torch.from_numpy(seq_lens)[:, None]
        return lengths.flatten(1).unbind(), self._views(num_reqs)

    def check_integrity(self) -> None:
        """What is kept is what would be made now."""
        (kept,) = np.nonzero(self._num_tail)
        if len(kept) == 0 or self._generation != self._allotments.live.generation:
            return
        rows, num_tail = self._rows[kept], self._num_tail[kept]
        num_full = self._allotments.num_full_blocks(rows)
        seq_lens = (num_full + num_tail) * self._block_size
        dealt, block_table, full, lengths = self._tensors(rows, num_full, seq_lens)
        expected = head_block_tables(block_table, dealt, full, lengths, self._block_size)
        num_entries = (dealt + torch.from_numpy(num_tail)[:, None, None]).transpose(0, 1)
        is_used = torch.arange(expected.shape[-1]) < num_entries.flatten(1)[..., None]
        tables = self._tables[:, kept].flatten(1, 2)[..., : expected.shape[-1]]
        assert torch.equal(tables[is_used], expected[is_used])

    def _make_room(self, num_reqs: int, row_width: int) -> None:
        """Begin anew, with places for `num_reqs` rows."""
        heads = (self._num_layers, num_reqs, self._num_kv_heads)
        self._rows = np.zeros((num_reqs, row_width), dtype=np.int32)
        self._num_tail = np.zeros(num_reqs, dtype=np.int64)
        """Blocks that follow the heads' own; 0 where nothing is kept, for there is always one."""
        self._lengths = torch.zeros(heads, dtype=torch.int32)
        """What is to be added to a request's length to get a head's."""
        self._tables = torch.zeros((*heads, 0), dtype=torch.int32)
        self._views_of: dict[int, PerLayer] = {}

    def _stale(self, rows: IntArray, num_tail: IntArray) -> IntArray:
        """The places whose tables must be made anew."""
        if self._generation != self._allotments.live.generation:
            # A prompt has decided what its heads keep: no row tells from whom it has its blocks.
            self._generation = self._allotments.live.generation
            self._num_tail[:] = 0
        num_reqs = len(rows)
        is_kept = (rows == self._rows[:num_reqs]).all(1) & (num_tail == self._num_tail[:num_reqs])
        return np.flatnonzero(~is_kept)

    def _rebuild(
        self, places: IntArray, rows: IntArray, num_full: IntArray, seq_lens: IntArray
    ) -> None:
        dealt, block_table, full, lengths = self._tensors(rows, num_full, seq_lens)
        tables = head_block_tables(block_table, dealt, full, lengths, self._block_size)
        width = tables.shape[-1]
        if width > self._tables.shape[-1]:
            more = width + SPARE_COLUMNS - self._tables.shape[-1]
            self._tables = torch.nn.functional.pad(self._tables, (0, more))
            self._views_of.clear()
        by_request = (len(rows), self._num_kv_heads)
        self._tables[:, places, :, :width] = tables.unflatten(1, by_request)
        lengths = head_seq_lens(dealt, full, torch.zeros_like(full), self._block_size)
        self._lengths[:, places] = lengths.unflatten(1, by_request)

    def _tensors(self, rows: IntArray, *others: IntArray) -> PerLayer:
        """n of each row, [num_reqs, L, H]; the rows; and what else there is of them."""
        dealt = np.stack([self._allotments.decided(row) for row in rows])
        return tuple(torch.from_numpy(array) for array in (dealt, rows, *others))

    def _views(self, num_reqs: int) -> PerLayer:
        if num_reqs not in self._views_of:
            shape = (self._num_layers, num_reqs * self._num_kv_heads, self._tables.shape[-1])
            self._views_of[num_reqs] = self._tables[:, :num_reqs].view(shape).unbind()
        return self._views_of[num_reqs]
