# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Bounds
from tests.budgets import reference


@st.composite
def layers(draw):
    """counts, total and bounds of one layer, with low * H <= total <= high * H."""
    counts = draw(st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any))
    low = draw(st.integers(1, 3))
    high = low + draw(st.integers(1, 40))
    total = draw(st.integers(low * len(counts), high * len(counts)))
    return np.array(counts), total, Bounds(low, high)


@hypothesis_settings(deadline=None, max_examples=300)
@given(layers())
def test_a_split_equals_the_reference(layer):
    assert split_layer(*layer).tolist() == reference.split_layer(*layer).tolist()


@hypothesis_settings(deadline=None)
@given(layers())
def test_every_block_of_the_layer_is_split_within_the_bounds(layer):
    counts, total, bounds = layer
    split = split_layer(counts, total, bounds)
    assert split.dtype == np.int32 and split.shape == counts.shape
    assert split.sum() == total
    assert bounds.min <= split.min() and split.max() <= bounds.max


@hypothesis_settings(deadline=None)
@given(layers())
def test_a_head_with_more_of_the_best_pairs_gets_at_least_as_many_blocks(layer):
    counts, total, bounds = layer
    split = split_layer(counts, total, bounds)
    assert (np.diff(split[np.argsort(-counts, kind="stable")]) <= 0).all()


@given(st.integers(1, 8), st.integers(1, 99), st.integers(1, 5))
def test_equal_counts_are_split_evenly(num_heads, count, mean):
    split = split_layer(np.full(num_heads, count), num_heads * mean, Bounds(1, mean + 1))
    assert split.tolist() == [mean] * num_heads


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # A fifth of 40 blocks is split evenly, two for each head. The other 32 go by count.
        ([640, 0, 0, 0], [34, 2, 2, 2]),
        ([320, 160, 160, 0], [18, 10, 10, 2]),
    ],
)
def test_a_fifth_of_the_blocks_is_split_evenly(counts, expected):
    assert split_layer(np.array(counts), 40, Bounds(1, 100)).tolist() == expected


def test_long_prompts_of_many_heads_do_not_overflow():
    num_heads, num_blocks = 128, 62_500
    counts = np.zeros(num_heads, dtype=np.int64)
    counts[:64] = num_blocks * 16 * np.arange(64) // 63
    total = int(counts.sum()) // 16
    split = split_layer(counts, total, Bounds(1, num_blocks))
    assert split.sum() == total
    assert split.tolist() == reference.split_layer(counts, total, Bounds(1, num_blocks)).tolist()
