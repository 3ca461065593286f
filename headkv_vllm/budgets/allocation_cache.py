# SPDX-License-Identifier: Apache-2.0
"""A cache of allocations. Live requests need theirs in many steps."""

from collections import OrderedDict

from headkv_vllm.arrays import FloatArray
from headkv_vllm.budgets.allocation import Allocation, allocate_head_blocks
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import PolicyName, Settings


class AllocationCache:
    """A least-recently-used cache of `allocate_head_blocks`, for fixed scores and settings.

    A result depends on the policy, K and F only. So requests of similar lengths share a result.

    capacity: how many results are kept.
    hits, misses: how often a result was in the cache, and how often it had to be computed.
    """

    def __init__(self, scores: FloatArray, settings: Settings, capacity: int = 1024) -> None:
        self._scores, self._settings, self._capacity = scores, settings, capacity
        self._results: OrderedDict[tuple[PolicyName, int, int], Allocation] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._results)

    def allocation(self, budget: RequestBudget) -> Allocation:
        """n[L, H] of a compressed request; see `allocate_head_blocks`. The array is read-only."""
        key = (budget.policy, budget.num_compressed_blocks, budget.num_full_blocks)
        if key in self._results:
            self.hits += 1
        else:
            self.misses += 1
            self._results[key] = self._computed(budget)
        self._results.move_to_end(key)
        if len(self._results) > self._capacity:
            self._results.popitem(last=False)
        return self._results[key]

    def check_integrity(self) -> None:
        """Check that every result allocates exactly its blocks, within its bounds."""
        assert len(self._results) <= self._capacity
        for (_, num_blocks, num_full_blocks), result in self._results.items():
            assert not result.flags.writeable
            assert result.sum() == num_blocks * self._scores.size
            assert self._settings.min_blocks <= result.min() <= result.max() <= num_full_blocks

    def _computed(self, budget: RequestBudget) -> Allocation:
        result = allocate_head_blocks(self._scores, budget, self._settings)
        result.flags.writeable = False
        return result
