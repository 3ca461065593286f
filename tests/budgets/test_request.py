# SPDX-License-Identifier: Apache-2.0
from math import floor

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.request import RequestBudget, request_budget
from headkv_vllm.config import Settings


@pytest.mark.parametrize(
    ("mapping", "num_prompt_tokens", "expected"),
    [
        ({"budget": 128}, 1000, RequestBudget(1000, 7, 62)),
        ({"budget": 136}, 1000, RequestBudget(1000, 8, 62)),
        ({"budget": 128, "window": 16}, 1000, RequestBudget(1000, 7, 61)),
        ({"budget": 9}, 1000, RequestBudget(1000, 1, 62)),
        ({"budget": 9, "min_blocks": 3}, 1000, RequestBudget(1000, 3, 62)),
        ({"budget": 0}, 1000, RequestBudget(1000, 0, 62, skip_reason="off")),
        ({"budget": 128}, 135, RequestBudget(135, 0, 7, skip_reason="too_short")),
        ({"budget": 128}, 136, RequestBudget(136, 7, 8)),
        ({"budget": 128, "policy": "adakv"}, 136, RequestBudget(136, 7, 8, "adakv")),
        ({"budget": 128}, 7, RequestBudget(7, 0, 0, skip_reason="too_short")),
        ({"keep_ratio": 0.5}, 1000, RequestBudget(1000, 30, 62)),
        ({"keep_ratio": 1.0}, 1000, RequestBudget(1000, 0, 62, skip_reason="too_short")),
        ({"keep_ratio": 0.0001}, 1000, RequestBudget(1000, 1, 62)),
        ({"keep_ratio": 1.0, "max_budget": 128}, 1000, RequestBudget(1000, 7, 62)),
        ({"keep_ratio": 0.0001, "min_budget": 128}, 1000, RequestBudget(1000, 7, 62)),
        (
            {"keep_ratio": 0.2, "min_budget": 128, "max_budget": 256},
            1000,
            RequestBudget(1000, 12, 62),
        ),
        ({}, 8192, RequestBudget(8192, 63, 511)),
    ],
)
def test_blocks_of_16_tokens(mapping, num_prompt_tokens, expected):
    budget = request_budget(Settings.parse(mapping), num_prompt_tokens, block_size=16)
    assert budget == expected
    assert budget.compressed == (expected.num_compressed_blocks > 0)
    assert budget.compressed == (budget.skip_reason is None)


def test_a_skipped_request_has_no_compressed_blocks():
    budget = request_budget(Settings(budget=128), 1000, 16)
    assert budget.skipped("no_room") == RequestBudget(1000, 0, 62, skip_reason="no_room")


@hypothesis_settings(deadline=None)
@given(
    num_prompt_tokens=st.integers(0, 200_000),
    block_size=st.sampled_from([1, 16, 32, 128]),
    window=st.integers(1, 64),
    extra=st.integers(1, 5000),
    min_blocks=st.integers(1, 4),
    ratio=st.none() | st.floats(0.001, 1),
)
def test_a_compressed_request_keeps_the_window_and_gains_blocks(
    num_prompt_tokens, block_size, window, extra, min_blocks, ratio
):
    amount = {"budget": window + extra} if ratio is None else {"keep_ratio": ratio}
    settings = Settings.parse({**amount, "window": window, "min_blocks": min_blocks})
    budget = request_budget(settings, num_prompt_tokens, block_size)
    num_blocks, num_full = budget.num_compressed_blocks, budget.num_full_blocks
    assert (
        num_full == 0 or window <= num_prompt_tokens - num_full * block_size < window + block_size
    )
    if budget.compressed:
        assert min_blocks <= num_blocks < num_full
        tokens = window + extra if ratio is None else floor(ratio * num_prompt_tokens)
        assert num_blocks == min_blocks or num_blocks * block_size + window <= tokens
