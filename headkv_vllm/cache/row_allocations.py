# SPDX-License-Identifier: Apache-2.0
"""The allocation of a request, from its row."""

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES, Policy
from headkv_vllm.budgets.request import RequestBudget, full_blocks
from headkv_vllm.cache.block_row import HEADER_SIZE, num_prompt_tokens
from headkv_vllm.cache.compression_points import CompressionPoints

_POLICY_NAMES = tuple(POLICIES)


class RowAllocations:
    """n[L, H] of the requests of one worker. A request keeps its first allocation."""

    def __init__(
        self, static: AllocationCache, adaptive: AdaptiveAllocations, points: CompressionPoints
    ) -> None:
        """static: allocations that the number of tokens decides.
        adaptive: allocations that prompts have decided so far.
        """
        self._static, self.adaptive, self.points = static, adaptive, points

    def policy(self, row: IntArray) -> Policy:
        """The policy of a request. row: the row, or only its header."""
        return POLICIES[_POLICY_NAMES[row[2]]]

    def compressed_blocks(self, row: IntArray) -> IntArray:
        """c_0 .. c_{K-1}, the first private blocks of one row. row: [width]. Returns [K]."""
        num_compressed = int(self.points.num_compressed_blocks(row))
        blocks: IntArray = row[HEADER_SIZE : HEADER_SIZE + num_compressed]
        return blocks

    def static_allocation(self, row: IntArray) -> Allocation:
        """n[L, H], as the number of tokens decides it. row: the row, or only its header.

        Under an adaptive policy only the sum of each layer is final.
        """
        points = self.points
        first = int(points.first(row))
        full = full_blocks(first, points.window, points.block_size)
        num_blocks, policy = int(points.num_compressed_blocks(row)), _POLICY_NAMES[row[2]]
        length = int(num_prompt_tokens(row))
        budget = RequestBudget(length, num_blocks, full, policy, delay=first - length)
        return self._static.allocation(budget)

    def allocation(self, row: IntArray) -> Allocation:
        """n[L, H] of a request that has been compressed."""
        if self.policy(row).adaptive:
            return self.adaptive.allocation(self.compressed_blocks(row).tolist())
        return self.static_allocation(row)
