# SPDX-License-Identifier: Apache-2.0
"""When the requests of a batch are compressed, and what they have given up by then.

A request is compressed at its *compression points*: P_0, P_0 + E, P_0 + 2E, ... tokens, where E is
`interval * block_size`, or at P_0 alone if its interval is 0. P_0 is the prompt length T, or more
if the prompt is short, or less with `compress_prefill` (`budgets.request.first_point`).

If P_0 = T, the step that computes token T - 1 compresses the prompt, because it has the queries of
the observation window. At all other points P, the step that computes token P compresses the request
before its tokens attend: the queries are in the request's own blocks (`cache.window_queries`). So
what a token attends is a function of its position and of the row.
"""

from typing import Final

import numpy as np

from headkv_vllm.arrays import BoolArray, IntArray
from headkv_vllm.cache.block_row import intervals, num_private_blocks, num_prompt_tokens
from headkv_vllm.config import Settings

NEVER: Final = 2**62
"""A number of tokens that no request reaches."""


class CompressionPoints:
    """The compression points of rows. All lengths are in tokens.

    Arguments `rows` are [num_reqs, width], or only their headers. Arguments `ends` are [num_reqs]:
    a token at position p has the end p + 1. `RequestBudget` has the same for a single request.
    """

    def __init__(self, settings: Settings, block_size: int, num_query_blocks: int) -> None:
        """num_query_blocks: the private blocks that are not compressed blocks, if E is not 0."""
        self.window, self.block_size = settings.window, block_size
        self._compress_prefill = settings.compress_prefill
        self.num_query_blocks = num_query_blocks

    def num_compressed_blocks(self, rows: IntArray) -> IntArray:
        """K of each row: [num_reqs]."""
        queries = np.where(intervals(rows) > 0, self.num_query_blocks, 0)
        blocks: IntArray = num_private_blocks(rows) - queries
        return blocks

    def first(self, rows: IntArray) -> IntArray:
        """P_0 of each row: [num_reqs] int64. T if the request is not compressed."""
        lengths = num_prompt_tokens(rows).astype(np.int64)
        num_compressed = self.num_compressed_blocks(rows).astype(np.int64)
        grown = 2 * num_compressed * self.block_size + self.window
        later = grown if self._compress_prefill else np.maximum(lengths, grown)
        points: IntArray = np.where(intervals(rows) > 0, later, lengths)
        return points

    def is_by_prompt(self, rows: IntArray, points: IntArray) -> BoolArray:
        """Whether the step that completes the prompt compresses the request at these points."""
        lengths = num_prompt_tokens(rows)
        by_prompt: BoolArray = (points == lengths) & (self.first(rows) == lengths)
        return by_prompt

    def next(self, rows: IntArray, ends: IntArray) -> IntArray:
        """The first point that is not below `ends`: [num_reqs] int64. `NEVER` if there is none."""
        first, every = self.first(rows), self._every(rows)
        later = np.where(every > 0, self.previous(rows, ends) + every, NEVER)
        points: IntArray = np.where(ends <= first, first, later)
        return np.where(num_private_blocks(rows) > 0, points, NEVER)

    def previous(self, rows: IntArray, ends: IntArray) -> IntArray:
        """The last point below `ends`, if `ends` is above P_0: [num_reqs] int64."""
        first, every = self.first(rows), self._every(rows)
        num_later = (ends - 1 - first) // np.maximum(every, 1)
        points: IntArray = first + num_later * every
        return points

    def replaced_blocks(self, rows: IntArray, ends: IntArray) -> IntArray:
        """The blocks that head blocks have replaced, as tokens with these ends see it.

        Returns [num_reqs] int32; 0 for tokens that attend all blocks of their request.
        """
        is_compressed = (num_private_blocks(rows) > 0) & (ends > self.first(rows))
        full = np.maximum(self.previous(rows, ends) - self.window, 0) // self.block_size
        return np.where(is_compressed, full, 0).astype(np.int32)

    def are_due(self, rows: IntArray, computed: IntArray) -> BoolArray:
        """Whether a step that begins after `computed` tokens compresses the request first."""
        first, every = self.first(rows), self._every(rows)
        is_point = (computed >= first) & ((computed - first) % np.maximum(every, 1) == 0)
        due: BoolArray = (every > 0) & (num_private_blocks(rows) > 0) & is_point
        return due & ~self.is_by_prompt(rows, computed)

    def _every(self, rows: IntArray) -> IntArray:
        every: IntArray = intervals(rows).astype(np.int64) * self.block_size
        return every
