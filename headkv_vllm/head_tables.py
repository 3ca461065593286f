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

    def update(self, rows: IntArray, seq_lens: IntArray) -> tuple[torch.Tensor, PerLayer]:
        """Lengths and tables for one step.

        rows: [num_reqs, width] int32. seq_lens: [num_reqs] int32, tokens of each request.
        Returns seq_lens, [L, num_reqs * H] int32, and block tables, L x [num_reqs * H, width]
        int32, as `head_seq_lens` and `head_block_tables` make them; but entries past a head's
        length have no meaning. The tables are views of what the next call changes.
        """
        num_reqs = len(rows)
        if num_reqs > len(self._rows) or rows.shape[1] != self._rows.shape[1]:
            self._make_room(max(num_reqs, 2 * len(self._rows)), rows.shape[1])
        if self._generation != self._allotments.live.generation:
            # A prompt has decided what its heads keep: no row tells from whom it has its blocks.
            self._generation = self._allotments.live.generation
            self._most_tokens[:] = 0
        is_kept = (rows == self._rows[:num_reqs]).all(1) & (
            seq_lens <= self._most_tokens[:num_reqs]
        )
        if not is_kept.all():
            stale = np.flatnonzero(~is_kept)
            self._rebuild(stale, rows[stale], seq_lens[stale])
        lengths = self._lengths[:, :num_reqs] + torch.from_numpy(seq_lens)[:, None]
        return lengths.flatten(1), self._views(num_reqs)

    def check_integrity(self) -> None:
        """What is kept is what would be made now."""
        (kept,) = np.nonzero(self._most_tokens)
        if len(kept) == 0 or self._generation != self._allotments.live.generation:
            return
        made, num_entries = self._made(self._rows[kept], self._most_tokens[kept])
        tables = self._tables[:, kept].flatten(1, 2)[..., : made.shape[-1]]
        is_used = torch.arange(made.shape[-1]) * self._block_size < num_entries[..., None]
        assert torch.equal(tables[is_used], made[is_used])

    def _make_room(self, num_reqs: int, row_width: int) -> None:
        """Begin anew, with places for `num_reqs` rows."""
        heads = (self._num_layers, num_reqs, self._num_kv_heads)
        self._rows = np.zeros((num_reqs, row_width), dtype=np.int32)
        self._most_tokens = np.zeros(num_reqs, dtype=np.int32)
        """The longest that a request may be for its tables to do; 0 where nothing is kept."""
        self._lengths = torch.zeros(heads, dtype=torch.int32)
        """What is to be added to a request's length to get a head's."""
        self._tables = torch.zeros((*heads, 0), dtype=torch.int32)
        self._views_of: dict[int, PerLayer] = {}

    def _rebuild(self, places: IntArray, rows: IntArray, seq_lens: IntArray) -> None:
        most_tokens = -(-seq_lens // self._block_size) * self._block_size
        tables, num_entries = self._made(rows, most_tokens)
        width = tables.shape[-1]
        if width > self._tables.shape[-1]:
            more = width + SPARE_COLUMNS - self._tables.shape[-1]
            self._tables = torch.nn.functional.pad(self._tables, (0, more))
            self._views_of.clear()
        by_request = (len(rows), self._num_kv_heads)
        self._tables[:, places, :, :width] = tables.unflatten(1, by_request)
        lengths = num_entries.unflatten(1, by_request) - torch.from_numpy(most_tokens)[:, None]
        self._lengths[:, places] = lengths
        self._rows[places], self._most_tokens[places] = rows, most_tokens

    def _made(self, rows: IntArray, seq_lens: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables [L, num_reqs * H, width] and lengths [L, num_reqs * H], made anew."""
        decided = np.stack([self._allotments.decided(row) for row in rows])
        arrays = (decided, self._allotments.num_full_blocks(rows), seq_lens)
        dealt, full, ends = (torch.from_numpy(array) for array in arrays)
        size, block_table = self._block_size, torch.from_numpy(rows)
        tables = head_block_tables(block_table, dealt, full, ends, size)
        return tables, head_seq_lens(dealt, full, ends, size)

    def _views(self, num_reqs: int) -> PerLayer:
        if num_reqs not in self._views_of:
            shape = (self._num_layers, num_reqs * self._num_kv_heads, self._tables.shape[-1])
            self._views_of[num_reqs] = self._tables[:, :num_reqs].view(shape).unbind()
        return self._views_of[num_reqs]
