# SPDX-License-Identifier: Apache-2.0
"""Steps that decode one token of each of the same compressed requests, one after the other."""

import numpy as np

from headkv_vllm.batch import Batch
from headkv_vllm.block_row import IntArray


class DecodeRun:
    """A step's batch, and what becomes of it while requests do nothing but grow.

    Most steps are like the one before: the same requests, a token each, and room for it in their
    last blocks. All that such a step changes is that slots and lengths are one more, so its batch
    is the last one, changed in place, and whatever was made of that batch still holds.
    """

    def __init__(
        self, batch: Batch, rows: IntArray, starts: IntArray, seq_lens: IntArray, block_size: int
    ) -> None:
        """batch: of a step in which each request decodes one token by head, and nothing else is.

        rows: [num_reqs, width]. starts: [num_reqs + 1], the step's `query_start_loc`.
        seq_lens: [num_reqs]. They are copied: vLLM reuses their memory for the next step.
        """
        self.batch = batch
        self._rows, self._starts, self._seq_lens = rows.copy(), starts.copy(), seq_lens.copy()
        self._most_tokens = -(-seq_lens // block_size) * block_size

    def advance(self, rows: IntArray, starts: IntArray, seq_lens: IntArray) -> Batch | None:
        """The batch of the next step, which is this one from now on; None when that is over."""
        next_lens = self._seq_lens + 1
        if (
            rows.shape != self._rows.shape
            or not np.array_equal(seq_lens, next_lens)
            or not np.array_equal(starts, self._starts)
            or (next_lens > self._most_tokens).any()
            or not np.array_equal(rows, self._rows)
        ):
            return None
        assert self.batch.by_head is not None, "nothing is decoded by head"
        self._seq_lens = next_lens
        self.batch.slot_mapping.add_(1)
        self.batch.by_head.seq_lens.add_(1)
        return self.batch
