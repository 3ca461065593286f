# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tools.needle_training.model import initial_model


@pytest.fixture(scope="module")
def attention():
    """Layer 0's attention weights over 40 random words: [num_heads, num_tokens, num_tokens]."""
    model = initial_model(seed=3).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 448, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids, output_attentions=True).attentions[0][0]


@pytest.mark.parametrize(("head", "back"), [(0, 1), (1, 2)])
def test_the_prior_looks_back_one_and_two_tokens(attention, head, back):
    looked_at = attention[head].argmax(-1)[back:]
    miss = (looked_at - torch.arange(40 - back)).abs()
    assert miss.max() <= 1 and (miss == 0).float().mean() > 0.75


def test_the_other_heads_start_without_a_prior(attention):
    assert attention[2:, 20:].diagonal(offset=19, dim1=1, dim2=2).max() < 0.3


def test_the_seed_decides_the_weights():
    first, again, other = (initial_model(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert sum(weights.numel() for weights in initial_model(1).parameters()) < 1_000_000
