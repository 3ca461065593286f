# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import numpy as np
import pytest

from headkv_vllm.budgets.policy import POLICIES
from headkv_vllm.config import Settings

SCORES = np.array([[4.0, 1.0], [3.0, 0.0]])


def test_every_policy_that_the_settings_allow_is_registered():
    assert set(POLICIES) == set(get_args(Settings.model_fields["policy"].annotation))


def test_headkv_adds_shares_of_the_pool_to_the_base():
    # K = 6 and beta = 1.5: a base of 2 each and a pool of 4 * 4 head blocks, shared 4:1:3:0.
    shares = POLICIES["headkv"](SCORES, 6, 100, Settings(beta=1.5))
    np.testing.assert_allclose(shares, [[2 + 8, 2 + 2], [2 + 6, 2]])


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_only_the_ratios_of_scores_matter(scale):
    shares = POLICIES["headkv"](SCORES * scale, 6, 100, Settings())
    np.testing.assert_allclose(shares, POLICIES["headkv"](SCORES, 6, 100, Settings()))


def test_headkv_without_any_score_is_uniform():
    shares = POLICIES["headkv"](np.zeros((2, 2)), 6, 100, Settings())
    np.testing.assert_allclose(shares, np.full((2, 2), 6))


def test_uniform_disregards_the_scores():
    assert POLICIES["uniform"](SCORES, 6, 100, Settings()).tolist() == [[6, 6], [6, 6]]
