# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.statistics import ScoreComparison, compare, summarise

SCORES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1e308),
).filter(np.any)


def plain_ranking(values):
    heads = [(layer, head) for layer, row in enumerate(values) for head in range(len(row))]
    return sorted(heads, key=lambda head: (-values[head], head))


def test_a_summary_by_hand():
    summary = summarise(np.array([[4.0, 0.0, 1.0], [1.0, 3.0, 1.0]]), top=3)
    assert (summary.num_layers, summary.num_heads) == (2, 3)
    top = [(head.layer, head.head, head.score, head.share) for head in summary.top]
    assert top == [(0, 0, 4.0, 0.4), (1, 1, 3.0, 0.3), (0, 2, 1.0, 0.1)]
    assert (summary.num_top_5_percent, summary.share_top_5_percent) == (1, 0.4)
    assert summary.num_heads_for_half == 2
    assert summary.layer_shares == (0.5, 0.5)


def test_five_percent_of_a_large_model():
    values = np.full((32, 32), 1.0)
    values.ravel()[:52] = 19.0
    summary = summarise(values)
    assert summary.num_top_5_percent == 52
    assert summary.share_top_5_percent == pytest.approx(52 * 19 / (52 * 19 + 972))
    assert summary.num_heads_for_half == 52
    assert len(summary.top) == 10


def test_half_is_reached_by_exactly_half():
    assert summarise(np.ones((2, 2))).num_heads_for_half == 2


@settings(deadline=None)
@given(values=SCORES, top=st.integers(0, 20))
def test_a_summary_equals_one_counted_head_by_head(values, top):
    summary = summarise(values, top)
    ranking = plain_ranking(values)
    assert [(head.layer, head.head) for head in summary.top] == ranking[:top]
    shares = [float(values[head] / values.max()) for head in ranking]
    total = sum(shares)
    number = -(-values.size // 20)
    assert summary.num_top_5_percent == number
    assert summary.share_top_5_percent == pytest.approx(sum(shares[:number]) / total)
    least = summary.num_heads_for_half
    assert sum(shares[:least]) >= 0.5 * total * (1 - 1e-9)
    assert sum(shares[: least - 1]) < 0.5 * total * (1 + 1e-9)
    assert sum(summary.layer_shares) == pytest.approx(1)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_cannot_be_ranked_is_refused(bad):
    values = np.full((2, 2), bad)
    for call in (lambda: summarise(values), lambda: compare(values, np.ones((2, 2)))):
        with pytest.raises(ScoreFileError, match="finite and not negative"):
            call()


def test_a_comparison_by_hand():
    a = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    b = np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 5.0]])
    # Spearman: 1 - 6 * sum(d^2) / (n * (n^2 - 1)) with d = (0, 0, 0, 0, 1, -1), n = 6.
    expected = 1 - 6 * 2 / (6 * 35)
    found = compare(a, b)
    assert found.pearson == pytest.approx(expected)
    assert found.spearman == pytest.approx(expected)
    assert (found.num_top, found.top_overlap) == (3, 1.0)


def test_pearson_and_spearman_differ_where_they_should():
    a = np.arange(1.0, 13.0).reshape(3, 4)
    found = compare(a, np.exp(a))
    assert found.spearman == pytest.approx(1)
    assert found.pearson == pytest.approx(np.corrcoef(a.ravel(), np.exp(a).ravel())[0, 1])
    assert found.pearson < 0.9


def test_the_same_scores_by_another_factor_are_the_same():
    scores = np.random.default_rng(0).random((32, 32))
    found = compare(scores, 1e300 * scores)
    assert found == ScoreComparison(pytest.approx(1), pytest.approx(1), 100, 1.0)


def test_opposite_scores_have_no_top_head_in_common():
    scores = np.random.default_rng(0).random((16, 16)) + 1
    found = compare(scores, 1 / scores)
    assert found.spearman == pytest.approx(-1)
    assert (found.num_top, found.top_overlap) == (100, 0.0)


@pytest.mark.parametrize(
    ("shape", "number"), [((1, 1), 1), ((1, 3), 1), ((4, 8), 16), ((25, 8), 100)]
)
def test_at_most_half_of_the_heads_are_compared(shape, number):
    scores = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    assert compare(scores, scores).num_top == number


def test_constant_scores_have_no_correlation():
    constant, other = np.full((2, 4), 0.1), np.arange(8.0).reshape(2, 4)
    for a, b in ((constant, other), (other, constant), (constant, constant)):
        found = compare(a, b)
        assert found.pearson is None and found.spearman is None


def test_ties_in_the_top_go_to_the_lower_index():
    constant = np.ones((2, 4))
    first, last = constant.copy(), constant.copy()
    first[0], last[1] = 2, 2
    assert compare(constant, first).top_overlap == 1
    assert compare(constant, last).top_overlap == 0


def test_other_shapes_are_refused():
    with pytest.raises(ScoreFileError, match="2 layers x 3 heads and 3 layers x 2 heads"):
        compare(np.ones((2, 3)), np.ones((3, 2)))


@settings(deadline=None)
@given(values=SCORES, data=st.data())
def test_comparisons_are_in_range_and_symmetric(values, data):
    other = data.draw(arrays(np.float64, values.shape, elements=st.floats(0, 1e9)).filter(np.any))
    found = compare(values, other)
    for correlation in (found.pearson, found.spearman):
        assert correlation is None or -1.000001 <= correlation <= 1.000001
    assert 0 <= found.top_overlap <= 1
    turned = compare(other, values)
    assert (turned.num_top, turned.top_overlap) == (found.num_top, found.top_overlap)
    assert turned.spearman == (None if found.spearman is None else pytest.approx(found.spearman))
