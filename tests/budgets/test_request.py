# SPDX-License-Identifier: Apache-2.0
from math import floor

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.request import RequestBudget, num_query_blocks, request_budget
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


@pytest.mark.parametrize(
    ("mapping", "num_prompt_tokens", "first_point", "num_full"),
    [
        ({"budget": 128}, 1000, 1000, 62),
        ({"budget": 128}, 232, 232, 14),
        ({"budget": 128}, 231, 232, 14),
        ({"budget": 128}, 5, 232, 14),
        ({"budget": 128, "window": 16}, 5, 240, 14),
        ({"keep_ratio": 0.25}, 1000, 1000, 62),
    ],
)
def test_a_short_request_grows_to_twice_its_budget_first(
    mapping, num_prompt_tokens, first_point, num_full
):
    settings = Settings.parse({**mapping, "compress_every": 50})
    budget = request_budget(settings, num_prompt_tokens, block_size=16)
    assert (budget.first_point, budget.num_full_blocks) == (first_point, num_full)
    assert budget.compressed and budget.interval == 3  # 50 tokens, in whole blocks


@hypothesis_settings(deadline=None)
@given(
    num_prompt_tokens=st.integers(1, 400),
    block_size=st.sampled_from([1, 4, 16]),
    window=st.integers(1, 24),
    extra=st.integers(1, 120),
    interval=st.integers(0, 3),
    compress_prefill=st.booleans(),
)
def test_compression_points_by_counting(
    num_prompt_tokens, block_size, window, extra, interval, compress_prefill
):
    """Each token is computed in turn, and what it sees is compared with a list of points."""
    interval = max(interval, -(-window // block_size)) if interval else 0
    every = interval * block_size
    settings = Settings(budget=window + extra, window=window, compress_every=0)
    changes = {"compress_every": every, "compress_prefill": compress_prefill}
    settings = settings.model_copy(update=changes)
    budget = request_budget(settings, num_prompt_tokens, block_size)
    if not budget.compressed:
        assert budget.next_point(0, block_size) is None
        return
    points, end = [budget.first_point], budget.first_point + 5 * block_size + 200
    while every and points[-1] < end:
        points.append(points[-1] + every)
    for num_tokens in range(1, end):
        later = [point for point in points if point > num_tokens]
        assert budget.next_point(num_tokens, block_size) == (later[0] if later else None)
        # The prompt is compressed by the step that ends there, and others by the step after.
        is_by_prompt = num_tokens == num_prompt_tokens == points[0]
        done = [p for p in points if p < num_tokens or (is_by_prompt and p == num_tokens)]
        expected = (done[-1] - window) // block_size if done else 0
        assert budget.num_replaced_blocks(num_tokens, block_size) == expected


@pytest.mark.parametrize(
    ("group_size", "window", "block_size", "expected"),
    [(1, 8, 16, 1), (3, 8, 32, 1), (4, 8, 16, 1), (8, 8, 16, 2), (4, 32, 16, 4), (33, 8, 16, 0)],
)
def test_blocks_for_queries(group_size, window, block_size, expected):
    assert num_query_blocks(group_size, window, block_size) == expected
