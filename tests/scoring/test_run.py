# SPDX-License-Identifier: Apache-2.0
"""Which answers count, and what becomes of them."""

import numpy as np
import pytest

from headkv_vllm.errors import ScoringError
from headkv_vllm.scoring.journal import SampleResult
from headkv_vllm.scoring.run import accepted, mean_scores


def result(index, f1, value):
    return SampleResult(index=index, f1=f1, scores=((value, 0.0), (2 * value, 0.25)))


def test_only_right_answers_count():
    results = [result(0, 1.0, 0.5), result(1, 0.5, 100.0), result(2, 0.51, 0.25)]
    assert [r.index for r in accepted(results)] == [0, 2]
    np.testing.assert_array_equal(mean_scores(results), [[0.375, 0.0], [0.75, 0.25]])


@pytest.mark.parametrize(
    ("right", "total", "enough"), [(1, 4, True), (1, 5, False), (25, 100, True)]
)
def test_a_quarter_of_the_answers_must_be_right(right, total, enough):
    results = [result(i, float(i < right), 0.5) for i in range(total)]
    if enough:
        assert mean_scores(results).any()
        return
    with pytest.raises(ScoringError, match=rf"answered {right} of {total} samples") as caught:
        mean_scores(results)
    assert "--allow-few" in str(caught.value)
    assert mean_scores(results, allow_few=True).any()


def test_without_a_right_answer_there_are_no_scores():
    for allow_few in (False, True):
        with pytest.raises(ScoringError, match="answered 0 of 3 samples"):
            mean_scores([result(i, 0.0, 0.5) for i in range(3)], allow_few=allow_few)


def test_answers_that_come_from_elsewhere_are_no_scores():
    nothing = SampleResult(index=0, f1=1.0, scores=((0.0, 0.0),))
    with pytest.raises(ScoringError, match="all scores are 0"):
        mean_scores([nothing])


def test_small_scores_keep_their_digits():
    """Long evidence divides by its length, and only the ratios of the scores matter."""
    scores = np.random.default_rng(0).uniform(0.1, 1, (2, 4))
    for scale in (1.0, 1e-3, 1e-30):
        small = SampleResult(index=0, f1=1.0, scores=(scores * scale).tolist())
        np.testing.assert_allclose(mean_scores([small]) / scale, scores, rtol=1e-5)
