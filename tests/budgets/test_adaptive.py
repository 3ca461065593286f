# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive import split_layer, split_layer_plain
from headkv_vllm.budgets.allotment import Bounds


@st.composite
def layers(draw):
    """counts, total and bounds of one layer, with fewest * H <= total <= most * H."""
    counts = draw(st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any))
    fewest = draw(st.integers(1, 3))
    most = fewest + draw(st.integers(1, 40))
    total = draw(st.integers(fewest * len(counts), most * len(counts)))
    return np.array(counts), total, Bounds(fewest, most)


@hypothesis_settings(deadline=None, max_examples=300)
@given(layers())
def test_a_split_is_that_of_the_plain_twin(layer):
    assert split_layer(*layer).tolist() == split_layer_plain(*layer).tolist()


@hypothesis_settings(deadline=None)
@given(layers())
def test_every_block_of_the_layer_is_dealt_out_within_the_bounds(layer):
    counts, total, bounds = layer
    dealt = split_layer(counts, total, bounds)
    assert dealt.dtype == np.int32 and dealt.shape == counts.shape
    assert dealt.sum() == total
    assert bounds.fewest <= dealt.min() and dealt.max() <= bounds.most


@hypothesis_settings(deadline=None)
@given(layers())
def test_a_head_with_more_of_the_best_gets_no_fewer_blocks(layer):
    counts, total, bounds = layer
    dealt = split_layer(counts, total, bounds)
    assert (np.diff(dealt[np.argsort(-counts, kind="stable")]) <= 0).all()


@given(st.integers(1, 8), st.integers(1, 99), st.integers(1, 5))
def test_equal_counts_are_split_evenly(num_heads, count, mean):
    dealt = split_layer(np.full(num_heads, count), num_heads * mean, Bounds(1, mean + 1))
    assert dealt.tolist() == [mean] * num_heads


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # A fifth of 40 blocks is shared evenly, two each; 32 go by count.
        ([640, 0, 0, 0], [34, 2, 2, 2]),
        ([320, 160, 160, 0], [18, 10, 10, 2]),
    ],
)
def test_a_fifth_is_every_heads_own(counts, expected):
    assert split_layer(np.array(counts), 40, Bounds(1, 100)).tolist() == expected


def test_long_prompts_of_many_heads_do_not_overflow():
    num_heads, num_blocks = 128, 62_500
    counts = np.zeros(num_heads, dtype=np.int64)
    counts[:64] = num_blocks * 16 * np.arange(64) // 63
    total = int(counts.sum()) // 16
    dealt = split_layer(counts, total, Bounds(1, num_blocks))
    assert dealt.sum() == total
    assert dealt.tolist() == split_layer_plain(counts, total, Bounds(1, num_blocks)).tolist()
