# SPDX-License-Identifier: Apache-2.0
"""What the heads of a request keep, as its row says."""

from headkv_vllm.block_row import IntArray, compressed_blocks, num_prompt_tokens
from headkv_vllm.budgets.allotment import HeadBlocks
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.budgets.request import RequestBudget, full_blocks

_POLICY_NAMES = tuple(POLICIES)


class RowAllotments:
    """n[L, H] of one worker's requests."""

    def __init__(
        self, planned: AllotmentCache, live: LiveAllotments, window: int, block_size: int
    ) -> None:
        """planned: what prompt lengths decide. live: what prompts have decided so far."""
        self._planned, self.live = planned, live
        self._window, self._block_size = window, block_size

    def policy(self, row: IntArray) -> Policy:
        """The policy of a row."""
        return POLICIES[_POLICY_NAMES[row[2]]]

    def num_full_blocks(self, rows: IntArray) -> IntArray:
        """F of each of `rows`, [num_reqs, width]: [num_reqs]; see `full_blocks`."""
        full: IntArray = (num_prompt_tokens(rows) - self._window).clip(0) // self._block_size
        return full

    def planned(self, row: IntArray) -> HeadBlocks:
        """n[L, H], as far as the prompt's length decides it."""
        length, num_blocks, policy = row[:3].tolist()
        num_full_blocks = full_blocks(length, self._window, self._block_size)
        budget = RequestBudget(length, num_blocks, num_full_blocks, _POLICY_NAMES[policy])
        return self._planned.allot(budget)

    def decided(self, row: IntArray) -> HeadBlocks:
        """n[L, H] of a request that has been compressed, or is in this step."""
        if self.policy(row).adaptive:
            return self.live.allotment(compressed_blocks(row).tolist())
        return self.planned(row)
