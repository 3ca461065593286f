# SPDX-License-Identifier: Apache-2.0
"""The two scores of a step, against their plain twins and by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.scoring.attention_scores import (
    STEP_SCORES,
    evidence_score,
    retrieval_score,
)
from tests.scoring import reference

TWINS = [(evidence_score, reference.evidence_score), (retrieval_score, reference.retrieval_score)]


@st.composite
def steps(draw):
    """Attention with many equal weights, some evidence, and some places of the said token."""
    num_heads, num_tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    cells = st.lists(st.integers(0, 3), min_size=num_tokens, max_size=num_tokens)
    weights = torch.tensor([draw(cells) for _ in range(num_heads)], dtype=torch.float32)
    flags = st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)
    evidence = draw(flags.filter(any))
    return weights / 8, torch.tensor(evidence), torch.tensor(draw(flags))


@pytest.mark.parametrize(("score", "plain"), TWINS)
@given(step=steps())
def test_the_plain_twin_agrees(score, plain, step):
    torch.testing.assert_close(score(*step), plain(*step))


def test_r2_by_hand():
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    evidence = torch.tensor([False, True, True, False])
    anywhere = torch.zeros(4, dtype=torch.bool)
    # Top two of head 0: positions 0, 1; of head 1: 3, 2; of head 2, all equal, the first two.
    expected = torch.tensor([0.3 / 2, 0.3 / 2, 0.25 / 2])
    torch.testing.assert_close(STEP_SCORES["r2"](attention, evidence, anywhere), expected)


def test_r_by_hand():
    attention = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1]])
    evidence = torch.tensor([False, True, True, False])
    holds_token = torch.tensor([True, True, False, False])
    # Head 0 copies from the evidence, head 1 looks at another token of it, head 2 elsewhere.
    expected = torch.tensor([1 / 2, 0.0, 0.0])
    torch.testing.assert_close(STEP_SCORES["r"](attention, evidence, holds_token), expected)


@pytest.mark.parametrize("method", STEP_SCORES)
@given(step=steps())
def test_a_step_scores_between_0_and_1(method, step):
    attention, evidence, holds_token = step
    rows = attention / attention.sum(1, keepdim=True).clamp(min=1e-6)
    scores = STEP_SCORES[method](rows, evidence, holds_token)
    assert bool((scores >= 0).all()) and bool((scores <= 1 + 1e-6).all())
