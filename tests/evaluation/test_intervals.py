# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.summary import Interval, bootstrap_interval

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_it_is_near_the_normal_interval_of_many_values() -> None:
    # 300 of 400 right: mean 0.75, standard error sqrt(0.75 * 0.25 / 400) = 0.02165, so the normal
    # interval is 0.75 -+ 1.96 * 0.02165 = 0.7076 .. 0.7924.
    interval = bootstrap_interval([1.0] * 300 + [0.0] * 100, seed=3)
    assert interval.mean == 0.75
    assert interval.low == pytest.approx(0.7076, abs=0.004)
    assert interval.high == pytest.approx(0.7924, abs=0.004)


def test_two_values_have_three_means() -> None:
    # A resample of (0, 1) has mean 0, 0.5 or 1 with chances 1/4, 1/2, 1/4: 95 % spans them all, the
    # middle 40 % are 0.5 alone.
    assert bootstrap_interval([0.0, 1.0], seed=1) == Interval(0.5, 0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], seed=1, confidence=0.4) == Interval(0.5, 0.5, 0.5)


@settings(max_examples=25)
@given(values=SCORES, seed=st.integers(0, 99))
def test_the_mean_lies_inside_and_the_bounds_are_values_of_a_mean(
    values: list[float], seed: int
) -> None:
    interval = bootstrap_interval(values, seed, resamples=200)
    assert interval == bootstrap_interval(values, seed, resamples=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.mean == pytest.approx(np.mean(values))


def test_more_confidence_is_wider() -> None:
    values = np.random.default_rng(5).uniform(size=40).tolist()
    narrow, wide = (bootstrap_interval(values, 1, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_another_seed_gives_another_interval() -> None:
    values = np.random.default_rng(5).uniform(size=40).tolist()
    assert bootstrap_interval(values, 1) != bootstrap_interval(values, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1), "there are no values"),
        (([1.0], 1, 1.0), r"confidence is 1\.0, allowed are values between 0 and 1"),
        (([1.0], 1, 0.95, 0), "resamples is 0, allowed are integers from 1"),
    ],
)
def test_bad_input_is_named(arguments: tuple[list[float], int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        bootstrap_interval(*arguments)
