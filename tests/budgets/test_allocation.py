# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headkv_vllm.budgets.allocation import Bounds, allocate, allocate_head_blocks, largest_remainder
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.config import Settings
from tests.budgets import reference

# Few distinct values, many ties and zeros; or anything, over many orders of magnitude.
SHARE = st.sampled_from([0.0, 1.0, 2.0, 3.0]) | st.floats(0, 1e9) | st.floats(1e-30, 1e-6)


@st.composite
def share_arrays(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return draw(arrays(np.float64, shape, elements=SHARE).filter(np.any))


@st.composite
def block_counts(draw):
    """low <= K < high."""
    low = draw(st.integers(1, 5))
    num_blocks = low + draw(st.integers(0, 20))
    return low, num_blocks, num_blocks + draw(st.integers(1, 60))


@hypothesis_settings(deadline=None)
@given(shares=share_arrays(), counts=block_counts(), data=st.data())
def test_an_allocation_equals_the_reference(shares, counts, data):
    low, _, high = counts
    total = data.draw(st.integers(low * shares.size, high * shares.size))
    allocation = allocate(shares, total, Bounds(low, high))
    expected = reference.allocate(shares, total, Bounds(low, high))
    assert allocation.dtype == expected.dtype == np.int32
    np.testing.assert_array_equal(allocation, expected)


@hypothesis_settings(deadline=None)
@given(
    scores=share_arrays(),
    counts=block_counts(),
    beta=st.floats(1.001, 50),
    policy=st.sampled_from(list(POLICIES)),
)
def test_every_block_is_allocated_within_the_bounds(scores, counts, beta, policy):
    low, num_blocks, high = counts
    budget = RequestBudget(0, num_blocks, high, policy)
    allocation = allocate_head_blocks(scores, budget, Settings(beta=beta, min_blocks=low))
    assert allocation.shape == scores.shape
    assert allocation.sum() == num_blocks * scores.size
    assert low <= allocation.min()
    assert allocation.max() <= high


@hypothesis_settings(deadline=None)
@given(scores=share_arrays(), counts=block_counts())
def test_a_higher_score_gets_at_least_as_many_blocks_up_to_rounding(scores, counts):
    low, num_blocks, high = counts
    settings = Settings(min_blocks=low)
    allocation = allocate_head_blocks(scores, RequestBudget(0, num_blocks, high), settings)
    by_score = allocation.ravel()[np.argsort(scores, axis=None, kind="stable")].astype(int)
    assert (by_score[1:] - np.maximum.accumulate(by_score)[:-1] >= -1).all()


@hypothesis_settings(deadline=None)
@given(
    weights=arrays(np.int64, (3, 4), elements=st.integers(1, 50)),
    counts=block_counts(),
)
def test_unequal_weights_keep_their_order_and_equal_ones_go_by_index(weights, counts):
    low, num_blocks, high = counts
    allocation = allocate(weights.astype(float), num_blocks * weights.size, Bounds(low, high))
    order = np.argsort(-weights, axis=None, kind="stable")
    assert (np.diff(allocation.ravel()[order]) <= 0).all()


def test_shares_that_need_no_rounding_are_kept():
    shares = np.array([[10.0, 4.0], [8.0, 2.0]])
    assert allocate(shares, 24, Bounds(1, 100)).tolist() == [[10, 4], [8, 2]]


def test_the_largest_remainders_get_what_rounding_leaves():
    shares = np.array([[2.5, 1.1, 1.9, 2.5]])
    assert allocate(shares, 8, Bounds(1, 100)).tolist() == [[3, 1, 2, 2]]


def test_what_a_capped_head_cannot_use_goes_to_the_others_by_share():
    # The first head gets its maximum of 16. The other 24 blocks are split 3:2:1.
    assert allocate(np.array([[94.0, 3.0, 2.0, 1.0]]), 40, Bounds(1, 16)).tolist() == [
        [16, 12, 8, 4]
    ]


def test_what_raises_a_head_to_the_minimum_comes_from_the_others_by_share():
    assert allocate(np.array([[0.1, 8.0, 4.0, 0.0]]), 20, Bounds(1, 16)).tolist() == [[1, 12, 6, 1]]


def test_heads_without_a_share_get_blocks_when_all_others_are_full():
    assert allocate(np.array([[1.0, 0.0, 0.0]]), 9, Bounds(1, 5)).tolist() == [[5, 2, 2]]


def test_uniform_scores_give_every_head_k_blocks():
    allocation = allocate_head_blocks(np.full((80, 8), 0.3), RequestBudget(0, 7, 62), Settings())
    assert (allocation == 7).all()


def test_a_tensor_parallel_rank_allocates_its_own_blocks():
    scores = np.random.default_rng(0).random((4, 8)) ** 8
    for rank in range(2):
        own = scores[:, rank * 4 : rank * 4 + 4]
        allocation = allocate_head_blocks(own, RequestBudget(0, 7, 62), Settings())
        assert allocation.shape == (4, 4)
        assert allocation.sum() == 7 * 16


@pytest.mark.parametrize("shape", [(32, 8), (80, 8), (64, 64)])
@pytest.mark.parametrize("power", [1, 8, 100])
def test_blocks_of_large_models_are_allocated_exactly(shape, power):
    scores = np.random.default_rng(0).random(shape) ** power
    allocation = allocate_head_blocks(scores, RequestBudget(0, 8191, 65535), Settings(min_blocks=2))
    assert allocation.sum(dtype=np.int64) == 8191 * scores.size
    assert allocation.min() >= 2
    assert allocation.max() <= 65535


@pytest.mark.parametrize("counts", [(0, 4, 4), (3, 5, 4), (1, 9, 4), (4, 8, 4)])
def test_blocks_that_do_not_fit_the_bounds_fail_an_assertion(counts):
    low, total, high = counts
    with pytest.raises(AssertionError):
        allocate(np.ones((1, 2)), total, Bounds(low, high))


@hypothesis_settings(deadline=None)
@given(scores=share_arrays(), counts=block_counts())
def test_an_adaptive_policy_fixes_the_layers_and_estimates_an_even_split(scores, counts):
    low, num_blocks, high = counts
    settings = Settings(min_blocks=low)
    by_score, estimated = (
        allocate_head_blocks(scores, RequestBudget(0, num_blocks, high, policy), settings)
        for policy in ("headkv", "headkv_ada")
    )
    np.testing.assert_array_equal(estimated.sum(1), by_score.sum(1))
    assert (np.ptp(estimated, axis=1) <= 1).all()


@given(
    weights=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    total=st.integers(0, 100),
)
def test_largest_remainder_keeps_the_sum_and_differs_by_less_than_one(weights, total):
    allocation = largest_remainder(np.array(weights), total)
    assert allocation.sum() == total
    exact = np.array(weights) * total / sum(weights)
    assert (abs(allocation - exact) < 1 + 1e-9).all()
    assert (np.diff(allocation[np.argsort(-np.array(weights), kind="stable")]) <= 0).all()
