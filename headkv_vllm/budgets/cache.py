# SPDX-License-Identifier: Apache-2.0
"""Allotments that live requests ask for again at every step."""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from headkv_vllm.budgets.allotment import HeadBlocks, allot_head_blocks
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import PolicyName, Settings


class AllotmentCache:
    """`allot_head_blocks` for fixed scores and settings, keeping the last `capacity` results.

    A result depends on the policy, K and F alone, so requests of about one length share it.
    hits, misses: how often one was there already, and how often not.
    """

    def __init__(
        self, scores: npt.NDArray[np.float64], settings: Settings, capacity: int = 1024
    ) -> None:
        self._scores, self._settings, self._capacity = scores, settings, capacity
        self._kept: OrderedDict[tuple[PolicyName, int, int], HeadBlocks] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def allot(self, budget: RequestBudget) -> HeadBlocks:
        """n[L, H] of a compressed request, read-only; see `allot_head_blocks`."""
        key = (budget.policy, budget.num_compressed_blocks, budget.num_full_blocks)
        if key in self._kept:
            self.hits += 1
        else:
            self.misses += 1
            self._kept[key] = self._computed(budget)
        self._kept.move_to_end(key)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return self._kept[key]

    def check_integrity(self) -> None:
        """Every kept allotment deals out exactly its blocks, within its bounds."""
        assert len(self._kept) <= self._capacity
        for (_, num_blocks, most), dealt in self._kept.items():
            assert not dealt.flags.writeable
            assert dealt.sum() == num_blocks * self._scores.size
            assert self._settings.min_blocks <= dealt.min() <= dealt.max() <= most

    def _computed(self, budget: RequestBudget) -> HeadBlocks:
        dealt = allot_head_blocks(self._scores, budget, self._settings)
        dealt.flags.writeable = False
        return dealt
