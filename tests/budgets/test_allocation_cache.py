# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from headkv_vllm.budgets.allocation import allocate_head_blocks
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import Settings

SCORES = np.random.default_rng(0).random((4, 8)) ** 8


def test_cached_allocations_are_those_of_the_function():
    cache = AllocationCache(SCORES, Settings())
    for num_full in (20, 30, 20):
        budget = RequestBudget(16 * num_full, 7, num_full)
        np.testing.assert_array_equal(
            cache.allocation(budget), allocate_head_blocks(SCORES, budget, Settings())
        )
    assert len(cache) == 2
    assert (cache.hits, cache.misses) == (1, 2)
    cache.check_integrity()


def test_policies_do_not_share_a_result():
    cache = AllocationCache(SCORES, Settings())
    for policy in ("headkv", "pyramidkv", "headkv"):
        budget = RequestBudget(320, 7, 20, policy)
        expected = allocate_head_blocks(SCORES, budget, Settings())
        np.testing.assert_array_equal(cache.allocation(budget), expected)
    assert (len(cache), cache.hits, cache.misses) == (2, 1, 2)


def test_requests_of_one_k_and_f_share_a_read_only_result():
    cache = AllocationCache(SCORES, Settings())
    first = cache.allocation(RequestBudget(330, 7, 20))
    assert cache.allocation(RequestBudget(335, 7, 20)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


def test_the_least_recently_used_result_goes_first():
    cache = AllocationCache(SCORES, Settings(), capacity=2)
    old, other = (cache.allocation(RequestBudget(0, 7, num_full)) for num_full in (20, 30))
    cache.allocation(RequestBudget(0, 7, 20))
    cache.allocation(RequestBudget(0, 7, 40))
    assert len(cache) == 2
    assert cache.allocation(RequestBudget(0, 7, 20)) is old
    assert cache.allocation(RequestBudget(0, 7, 30)) is not other
    cache.check_integrity()
