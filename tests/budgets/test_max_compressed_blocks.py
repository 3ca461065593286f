# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.request import max_compressed_blocks, request_budget
from headkv_vllm.cache.block_row import num_row_entries
from headkv_vllm.config import Settings


def max_of_all_lengths(settings, max_length, block_size):
    """The maximum number of compressed blocks, found by trying every prompt length."""
    lengths = range(1, max_length + 1)
    return max(request_budget(settings, n, block_size).num_compressed_blocks for n in lengths)


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"budget": 0},
        {"budget": 9},
        {"budget": 64, "min_blocks": 6},
        {"budget": 200, "window": 100},
        {"keep_ratio": 0.01},
        {"keep_ratio": 0.3, "window": 1},
        {"keep_ratio": 0.97, "min_blocks": 3},
        {"keep_ratio": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("block_size", [1, 16, 32])
def test_no_prompt_has_more_compressed_blocks_than_the_bound(mapping, block_size):
    settings = Settings.parse(mapping)
    for max_length in (1, 7, 8, 9, 100, 143, 144, 145, 1039, 1040, 1500):
        bound = max_compressed_blocks(settings, max_length, block_size)
        assert bound >= max_of_all_lengths(settings, max_length, block_size)


@hypothesis_settings(deadline=None)
@given(
    max_length=st.integers(1, 600),
    block_size=st.integers(1, 48),
    window=st.integers(1, 40),
    extra=st.none() | st.integers(0, 400),
    ratio=st.floats(0.001, 1),
    min_blocks=st.integers(1, 5),
)
def test_a_row_is_wide_enough_for_every_request(
    max_length, block_size, window, extra, ratio, min_blocks
):
    amount = {"keep_ratio": ratio} if extra is None else {"budget": window + extra if extra else 0}
    settings = Settings.parse({**amount, "window": window, "min_blocks": min_blocks})
    bound = max_compressed_blocks(settings, max_length, block_size)
    width = num_row_entries(bound, -(-max_length // block_size))
    for length in range(1, max_length + 1):
        budget = request_budget(settings, length, block_size)
        # The request may generate until it has the maximum length.
        entries = num_row_entries(budget.num_compressed_blocks, -(-max_length // block_size))
        assert entries <= width


@pytest.mark.parametrize(
    ("mapping", "max_length", "expected"),
    [
        ({"budget": 0}, 10_000, 0),
        ({"budget": 128}, 10_000, 7),
        ({"budget": 128}, 136, 7),
        ({"budget": 128}, 120, 6),
        ({"budget": 128}, 8, 0),
        ({"budget": 128}, 3, 0),
        ({"keep_ratio": 0.5}, 1000, 30),
        ({"keep_ratio": 1.0}, 1000, 61),
        ({"keep_ratio": 0.001, "min_blocks": 4}, 1000, 4),
    ],
)
def test_the_bound_in_blocks_of_16_tokens(mapping, max_length, expected):
    assert max_compressed_blocks(Settings.parse(mapping), max_length, 16) == expected


def test_a_budget_reserves_no_more_than_its_own_blocks():
    """The bound is tight. vLLM reserves this many blocks in the pool."""
    for mapping in ({"budget": 128}, {"budget": 9, "min_blocks": 2}):
        settings = Settings.parse(mapping)
        bound = max_compressed_blocks(settings, 2000, 16)
        assert bound == max_of_all_lengths(settings, 2000, 16)
