# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.cache.selection import (
    count_best,
    pool,
    ranked_again,
    ranked_positions,
    recency,
    top_positions,
    value_norms,
    window_attention,
)
from headkv_vllm.config import Settings
from tests.cache import reference

CPU = torch.device("cpu")

SHAPES = st.fixed_dictionaries(
    {
        "window": st.integers(1, 9),
        "earlier": st.integers(0, 40),
        "num_kv_heads": st.integers(1, 4),
        "group_size": st.integers(1, 4),
        "head_size": st.sampled_from([1, 8, 16]),
    }
)


def random_query_key(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    queries = (shape["num_kv_heads"], shape["group_size"], shape["window"])
    num_tokens = shape["earlier"] + shape["window"]
    query = torch.randn(*queries, shape["head_size"], generator=generator)
    key = torch.randn(shape["num_kv_heads"], shape["head_size"], num_tokens, generator=generator)
    return query.to(dtype), key.to(dtype)


@settings(deadline=None)
@given(
    SHAPES,
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([None, 0.5, 30.0]),
    st.sampled_from(["mean", "max"]),
    st.integers(1, 60),
    st.integers(0, 3),
    st.sampled_from([None, -2.0, 3.0]),
)
def test_window_attention_equals_the_reference(
    shape, seed, dtype, logits_soft_cap, reduction, tile, padding, sink
):
    """For any size of tiles, and with any number of keys after the prompt."""
    query, key = random_query_key(shape, seed, dtype)
    num_tokens = key.shape[2]
    key = torch.nn.functional.pad(key, (0, padding), value=99.0)
    sinks = None if sink is None else torch.arange(query[:, :, 0, 0].numel()) * sink / 4
    sinks = None if sinks is None else sinks.view(query.shape[:2])
    arguments = (key.split(tile, -1), num_tokens, 0.3, logits_soft_cap, reduction, None, sinks)
    attention = window_attention(query, *arguments)
    expected = reference.window_attention(query, *arguments)
    assert attention.dtype == torch.float32
    assert attention.shape == (key.shape[0], num_tokens)
    torch.testing.assert_close(attention, expected, atol=1e-6, rtol=1e-5)
    if reduction == "mean" and sinks is None:
        torch.testing.assert_close(attention.sum(1), torch.ones(key.shape[0]))


def test_a_query_of_the_window_sees_no_later_token():
    shape = {"window": 4, "earlier": 6, "num_kv_heads": 1, "group_size": 1, "head_size": 8}
    query, key = random_query_key(shape, seed=0)
    query[:, :, -1] = 0
    key[:, :, -1] = 1e3 * query[0, 0, :3].sum(0)
    # Only the last query sees the last key. The query is zero, so it attends all tokens equally.
    attention = window_attention(query, [key], 10, 1.0)
    torch.testing.assert_close(attention[0, -1], torch.tensor(0.1 / 4))


def test_the_maximum_is_over_all_queries_of_the_window_and_all_heads_of_the_group():
    """One query of one of the two heads attends the first token, and decides the maximum."""
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 9)
    query[0, 1, 1, 0], key[0, 0, 0] = 10.0, 10.0
    attention = window_attention(query, [key], 9, 1.0, reduction="max")
    torch.testing.assert_close(attention[0, 0], torch.tensor(1.0))
    torch.testing.assert_close(attention[0, 1:7], torch.full((6,), 1 / 7))


def test_value_norms_are_l1_norms():
    value = torch.tensor([[[1.0, -2.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    norms = value_norms(value)
    assert norms.dtype == torch.float32 and norms.tolist() == [[3.0, 0.0]]


@given(st.integers(0, 40), st.integers(0, 50))
def test_recency_equals_the_reference(num_positions, sink):
    arguments = (num_positions, sink, CPU)
    assert torch.equal(recency(*arguments), reference.recency(*arguments))


@pytest.mark.parametrize(
    ("sink", "expected"),
    [(0, [6, 7, 8, 9]), (1, [0, 7, 8, 9]), (3, [0, 1, 2, 9]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_recency_keeps_the_sink_and_the_last_positions(sink, expected):
    _, positions = top_positions(recency(10, sink, CPU).expand(2, -1), np.array([4, 4]))
    assert positions.tolist() == 2 * expected


@st.composite
def scores_and_number(draw):
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 30)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 5, 10**6]))
    scores = torch.randint(levels, shape, generator=generator).float()
    return scores, draw(st.integers(1, scores.numel()))


@settings(deadline=None, max_examples=300)
@given(scores_and_number())
def test_counts_of_the_best_equal_the_reference(given_):
    """The scores have ties, and may all be equal."""
    counts = count_best(*given_)
    assert counts.dtype == np.int64
    assert counts.tolist() == reference.count_best(*given_).tolist()
    assert counts.sum() == given_[1]
    assert (counts >= 0).all() and (counts <= given_[0].shape[1]).all()


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 30))
def test_heads_with_equal_scores_have_equal_counts(num_heads, num_positions, num_best):
    scores = torch.rand(num_positions).expand(num_heads, -1)
    counts = count_best(scores, min(num_best, scores.numel()))
    assert np.ptp(counts) <= 1


@settings(deadline=None)
@given(scores_and_number(), st.integers(1, 10**6))
def test_a_head_that_attends_more_counts_at_least_as_much(given_, more):
    scores, num_best = given_
    stronger = torch.cat([scores[:1] + more, scores])
    counts = count_best(stronger, num_best)
    assert counts[0] >= counts[1]


@pytest.mark.parametrize("pooling", ["max", "avg"])
@settings(deadline=None)
@given(
    data=st.data(),
    kernel_size=st.sampled_from([1, 3, 5, 7, 15]),
    num_tokens=st.integers(1, 30),
    num_kv_heads=st.integers(1, 3),
)
def test_pooling_equals_the_reference(pooling, data, kernel_size, num_tokens, num_kv_heads):
    seed = data.draw(st.integers(0, 2**32))
    attention = torch.rand(num_kv_heads, num_tokens, generator=torch.Generator().manual_seed(seed))
    chosen = Settings(budget=1024, kernel_size=kernel_size, pooling=pooling)
    torch.testing.assert_close(pool(attention, chosen), reference.pool(attention, chosen))


@st.composite
def attention_and_counts(draw):
    num_kv_heads, num_tokens = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(num_tokens, generator=generator) for _ in range(num_kv_heads)]
    counts = draw(
        st.lists(st.integers(0, num_tokens), min_size=num_kv_heads, max_size=num_kv_heads).filter(
            any
        )
    )
    return torch.stack(rows).float() / num_tokens, np.array(counts)


@settings(deadline=None, max_examples=200)
@given(attention_and_counts(), st.sampled_from([None, 1, 2, 4]))
def test_top_positions_equal_the_reference(given_, num_levels):
    """The scores have ties, as after max-pooling."""
    attention, num_kept = given_
    if num_levels is not None:
        attention = (attention * num_levels).floor()
    heads, positions = top_positions(attention, num_kept)
    expected_heads, expected_positions = reference.top_positions(attention, num_kept)
    assert torch.equal(heads, expected_heads)
    assert torch.equal(positions, expected_positions)


@settings(deadline=None)
@given(attention_and_counts())
def test_each_head_keeps_the_right_number_of_its_best_positions(given_):
    attention, num_kept = given_
    heads, positions = top_positions(attention, num_kept)
    assert heads.dtype == positions.dtype == torch.int64
    assert heads.shape == positions.shape == (int(num_kept.sum()),)
    assert torch.equal(heads, torch.arange(len(num_kept)).repeat_interleave(torch.tensor(num_kept)))
    for head, count in enumerate(num_kept.tolist()):
        own = positions[heads == head].tolist()
        assert own == sorted(set(own)) and len(own) == count
        assert all(0 <= position < attention.shape[1] for position in own)
        dropped = sorted(set(range(attention.shape[1])) - set(own))
        if own and dropped:
            assert attention[head, own].min() > attention[head, dropped].max()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_scores_of_a_broken_model_still_fill_each_head(broken):
    attention = torch.rand(3, 20)
    attention[0], attention[1, ::2] = broken, broken
    heads, positions = top_positions(attention, np.array([8, 16, 4]))
    assert heads.bincount().tolist() == [8, 16, 4]
    assert all(
        len(set(positions[heads == head].tolist())) == n for head, n in enumerate([8, 16, 4])
    )


def test_of_equal_positions_the_earlier_ones_are_kept():
    attention = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    _, positions = top_positions(attention, np.array([3, 2]))
    assert positions.tolist() == [0, 1, 4, 0, 1]


def test_scales_and_soft_caps_may_differ_from_head_to_head():
    """Several layers are scored at once, and each has its own scale and soft cap."""
    shape = {"window": 3, "earlier": 9, "num_kv_heads": 2, "group_size": 2, "head_size": 8}
    query, key = random_query_key(shape, seed=3)
    scales, soft_caps = torch.tensor([0.3, 2.0]), torch.tensor([0.5, 30.0])
    together = window_attention(
        query, [key], 12, scales[:, None, None], soft_caps[:, None, None], "max"
    )
    for head in range(2):
        own = (query[head, None], [key[head, None]], 12, float(scales[head]))
        alone = reference.window_attention(*own, float(soft_caps[head]), "max")
        torch.testing.assert_close(together[head], alone[0])


@st.composite
def choices_again(draw):
    """Scores of what heads have kept, after padding, and of new entries; and how many they keep."""
    num_heads, num_before = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    block_size, interval = draw(st.sampled_from([1, 4])), draw(st.integers(1, 4))
    blocks = draw(st.lists(st.integers(1, num_before), min_size=num_heads, max_size=num_heads))
    num_old, num_new = max(blocks) * block_size, interval * block_size
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 3, 10**6]))
    scores = torch.randint(levels, (num_heads, num_old + num_new), generator=generator).float()
    num_kept = np.array(blocks) * block_size
    padding = torch.from_numpy(num_old - num_kept)[:, None]
    scores[torch.arange(num_old + num_new) < padding] = -1
    return scores, num_kept, num_old, padding, num_before, num_before + interval


@settings(deadline=None, max_examples=300)
@given(choices_again())
def test_what_heads_choose_again_equals_the_reference(given_):
    _, num_kept, num_old, padding, num_before, num_blocks = given_
    heads, positions = ranked_again(*given_)
    expected_heads, expected = reference.ranked_again(*given_)
    assert torch.equal(heads, expected_heads) and torch.equal(positions, expected)
    for head, number in enumerate(num_kept.tolist()):
        own = positions[heads == head]
        assert len(own) == len(set(own.tolist())) == number
        assert (own >= padding[head]).all()
        # Old and new tokens get their parts, and what matters most is first.
        assert (own < num_old).sum() == -(-number * num_before // num_blocks)


def test_what_was_important_once_is_kept():
    """The present window looks at other entries, and the last entries matter to none."""
    scores = torch.tensor([[0.0, 0.0, 0.0, 5.0, 9.0, 7.0, 8.0, 6.0]])
    arguments = (np.array([4]), 4, torch.zeros(1, 1, dtype=torch.int64), 2, 4)
    _, positions = ranked_again(scores, *arguments)
    assert positions.tolist() == [0, 4, 3, 6]


@settings(deadline=None)
@given(scores_and_number())
def test_ranked_positions_are_the_top_positions_in_another_order(given_):
    scores, _ = given_
    num_kept = np.arange(len(scores)) % (scores.shape[1] + 1)
    if num_kept.sum() == 0:
        return
    heads, positions = ranked_positions(scores, num_kept)
    expected_heads, expected = top_positions(scores, num_kept)
    assert torch.equal(heads, expected_heads)
    for head in range(len(scores)):
        own = positions[heads == head]
        assert own.sort().values.tolist() == expected[heads == head].tolist()
        assert scores[head, own].tolist() == sorted(scores[head, own].tolist(), reverse=True)
