# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from headkv_vllm.budgets.allotment import allot_head_blocks
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import Settings

SCORES = np.random.default_rng(0).random((4, 8)) ** 8


def test_cached_allotments_are_those_of_the_function():
    cache = AllotmentCache(SCORES, Settings())
    for num_full in (20, 30, 20):
        budget = RequestBudget(16 * num_full, 7, num_full)
        np.testing.assert_array_equal(
            cache.allot(budget), allot_head_blocks(SCORES, budget, Settings())
        )
    assert len(cache) == 2
    assert (cache.hits, cache.misses) == (1, 2)
    cache.check_integrity()


def test_policies_do_not_share_a_result():
    cache = AllotmentCache(SCORES, Settings())
    for policy in ("headkv", "pyramidkv", "headkv"):
        budget = RequestBudget(320, 7, 20, policy)
        expected = allot_head_blocks(SCORES, budget, Settings())
        np.testing.assert_array_equal(cache.allot(budget), expected)
    assert (len(cache), cache.hits, cache.misses) == (2, 1, 2)


def test_requests_of_one_k_and_f_share_a_read_only_result():
    cache = AllotmentCache(SCORES, Settings())
    first = cache.allot(RequestBudget(330, 7, 20))
    assert cache.allot(RequestBudget(335, 7, 20)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


def test_the_least_recently_used_result_goes_first():
    cache = AllotmentCache(SCORES, Settings(), capacity=2)
    old, other = (cache.allot(RequestBudget(0, 7, num_full)) for num_full in (20, 30))
    cache.allot(RequestBudget(0, 7, 20))
    cache.allot(RequestBudget(0, 7, 40))
    assert len(cache) == 2
    assert cache.allot(RequestBudget(0, 7, 20)) is old
    assert cache.allot(RequestBudget(0, 7, 30)) is not other
    cache.check_integrity()
