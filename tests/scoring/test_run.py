# SPDX-License-Identifier: Apache-2.0
"""Which answers count, and what becomes of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from headkv_vllm.errors import ScoringError
from headkv_vllm.scoring.journal import SampleResult
from headkv_vllm.scoring.prompts import Template
from headkv_vllm.scoring.run import ScoreRun, accepted


def result(index, share, value=0.5):
    scores = ((value, 0.0), (2 * value, 0.25))
    return SampleResult(index=index, share=share, said=f"said {index}", scores=scores)


def run(method="r2", *, chat=False, chat_template=None):
    """A run of which only the samples' results are asked for."""
    checkpoint = SimpleNamespace(
        identity=SimpleNamespace(num_kv_heads=1),
        tokenizer=SimpleNamespace(chat_template=chat_template),
    )
    expected = tuple(f"expected {index}" for index in range(100))
    return ScoreRun(checkpoint, method, "forced", Template(chat=chat), (), expected)


def test_only_answers_that_are_more_than_half_right_count():
    results = [result(0, 1.0, 0.5), result(1, 0.5, 100.0), result(2, 0.51, 0.25)]
    assert [r.index for r in accepted(results)] == [0, 2]
    np.testing.assert_array_equal(run().mean_scores(results), [[0.375, 0.0], [0.75, 0.25]])


def test_gradients_are_averaged_before_their_negative_ones_go():
    signed = [((1.0, -2.0), (3.0, 0.0)), ((2.0, 0.0), (1.0, -1.0))]
    results = [
        SampleResult(index=i, share=1.0, said="", scores=scores) for i, scores in enumerate(signed)
    ]
    np.testing.assert_array_equal(run("grad").mean_scores(results), [[0.25, 0.25], [0.75, 0.75]])


@pytest.mark.parametrize(
    ("right", "total", "enough"), [(1, 4, True), (1, 5, False), (25, 100, True)]
)
def test_a_quarter_of_the_samples_must_count(right, total, enough):
    results = [result(i, float(i < right)) for i in range(total)]
    if enough:
        assert run().mean_scores(results).any()
        return
    with pytest.raises(ScoringError, match=rf"^{right} of {total} samples count") as caught:
        run().mean_scores(results)
    assert "--allow-few" in str(caught.value)
    assert run().mean_scores(results, allow_few=True).any()


@pytest.mark.parametrize("allow_few", [False, True])
def test_without_a_sample_that_counts_there_are_no_scores(allow_few):
    with pytest.raises(ScoringError, match=r"^none of 3 samples counts") as caught:
        run().mean_scores([result(i, 0.0) for i in range(3)], allow_few=allow_few)
    assert "sample 3 expects 'expected 2', the model says 'said 2'" in str(caught.value)


@pytest.mark.parametrize(
    ("chat", "chat_template", "advice"),
    [(True, "x", "--no-chat asks"), (False, "x", "--chat asks"), (False, None, "easier")],
)
def test_the_advice_is_what_was_not_tried(chat, chat_template, advice):
    asked = run(chat=chat, chat_template=chat_template)
    with pytest.raises(ScoringError) as caught:
        asked.mean_scores([result(0, 0.0)])
    text = str(caught.value)
    assert advice in text and text.count("chat") == (advice != "easier")


def test_answers_that_come_from_elsewhere_are_no_scores():
    nothing = SampleResult(index=0, share=1.0, said="", scores=((0.0, 0.0),))
    with pytest.raises(ScoringError, match="all scores are 0"):
        run().mean_scores([nothing])


def test_small_scores_keep_their_digits():
    """Long evidence divides by its length, and only the ratios of the scores matter."""
    scores = np.random.default_rng(0).uniform(0.1, 1, (2, 4))
    for scale in (1.0, 1e-3, 1e-30):
        small = SampleResult(index=0, share=1.0, said="", scores=(scores * scale).tolist())
        np.testing.assert_allclose(run().mean_scores([small]) / scale, scores, rtol=1e-5)
