# SPDX-License-Identifier: Apache-2.0
"""The allocation of a request, from its row."""

import numpy as np

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES, Policy
from headkv_vllm.budgets.request import RequestBudget, full_blocks
from headkv_vllm.cache.block_row import compressed_blocks, num_prompt_tokens

_POLICY_NAMES = tuple(POLICIES)


class RowAllocations:
    """n[L, H] of the requests of one worker."""

    def __init__(
        self,
        static: AllocationCache,
        adaptive: AdaptiveAllocations,
        window: int,
        block_size: int,
    ) -> None:
        """static: allocations that the prompt's length decides.
        adaptive: allocations that prompts have decided so far.
        window, block_size: in tokens.
        """
        self._static, self.adaptive = static, adaptive
        self._window, self._block_size = window, block_size

    def policy(self, row: IntArray) -> Policy:
        """The policy of a request. row: the row, or only its header."""
        return POLICIES[_POLICY_NAMES[row[2]]]

    def num_full_blocks(self, rows: IntArray) -> IntArray:
        """F of each row; see `request.full_blocks`. rows: [num_reqs, width]. Returns [num_reqs]."""
        full: IntArray = (num_prompt_tokens(rows) - self._window).clip(0) // self._block_size
        return full.astype(np.int32)

    def static_allocation(self, row: IntArray) -> Allocation:
        """n[L, H], as the prompt's length decides it. row: the row, or only its header.

        Under an adaptive policy only the sum of each layer is final.
        """
        length, num_blocks, policy = row[:3].tolist()
        full = full_blocks(length, self._window, self._block_size)
        return self._static.allocation(
            RequestBudget(length, num_blocks, full, _POLICY_NAMES[policy])
        )

    def allocation(self, row: IntArray) -> Allocation:
        """n[L, H] of a request that has been compressed."""
        if self.policy(row).adaptive:
            return self.adaptive.allocation(compressed_blocks(row).tolist())
        return self.static_allocation(row)
