# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.config import PolicyName, ScoredPolicy, Settings

SCORES = np.array([[4.0, 1.0], [3.0, 0.0]])


def shares(policy, scores=SCORES, num_compressed_blocks=6, **settings):
    return POLICIES[policy].shares(scores, num_compressed_blocks, 100, Settings(**settings))


def test_every_policy_that_the_settings_allow_is_registered():
    assert set(POLICIES) == set(get_args(PolicyName))


@pytest.mark.parametrize("policy", POLICIES)
def test_scored_policies_use_scores_and_others_do_not(policy):
    same = np.array_equal(shares(policy), shares(policy, SCORES[::-1]))
    assert Settings(policy=policy).uses_scores == (not same) == (policy in get_args(ScoredPolicy))


@pytest.mark.parametrize("policy", POLICIES)
@given(
    scores=arrays(np.float64, (3, 4), elements=st.floats(0, 1e9)),
    num_compressed_blocks=st.integers(1, 5000),
)
def test_shares_come_to_the_budget(policy, scores, num_compressed_blocks):
    found = shares(policy, scores, num_compressed_blocks)
    assert found.shape == scores.shape
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_allclose(found.sum(), num_compressed_blocks * scores.size)


def test_headkv_adds_shares_of_the_pool_to_the_base():
    # K = 6 and beta = 1.5: a base of 2 for each head, and a pool of 4 * 4 blocks, split 4:1:3:0.
    np.testing.assert_allclose(shares("headkv", beta=1.5), [[2 + 8, 2 + 2], [2 + 6, 2]])


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_only_the_ratios_of_scores_matter(scale):
    np.testing.assert_allclose(shares("headkv", SCORES * scale), shares("headkv"))


def test_headkv_is_uniform_when_all_scores_are_0():
    np.testing.assert_allclose(shares("headkv", np.zeros((2, 2))), np.full((2, 2), 6))


@pytest.mark.parametrize("policy", ["uniform", "streaming", "adakv"])
def test_these_policies_give_every_head_the_same(policy):
    assert shares(policy).tolist() == [[6, 6], [6, 6]]


def test_pyramidkv_falls_evenly_from_layer_to_layer():
    # The last of five layers has 40 / 20 = 2 blocks, and the first has 2 * 40 - 2 = 78.
    found = shares("pyramidkv", np.ones((5, 3)), 40)
    np.testing.assert_allclose(found, np.repeat([[78], [59], [40], [21], [2]], 3, axis=1))


def test_pyramidkv_of_one_layer_is_uniform():
    assert shares("pyramidkv", SCORES[:1]).tolist() == [[6, 6]]


def test_random_has_the_shares_of_headkv_on_other_heads():
    scores = np.random.default_rng(1).random((8, 4)) ** 4
    by_score, found = shares("headkv", scores), shares("random", scores)
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(by_score, axis=None))
    assert (found != by_score).mean() > 0.8
    np.testing.assert_array_equal(found, shares("random", scores))
