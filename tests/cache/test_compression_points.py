# SPDX-License-Identifier: Apache-2.0
"""What workers read from rows is what the scheduler's budget says."""

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headkv_vllm.budgets.request import RequestBudget, first_point, full_blocks
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression_points import NEVER, CompressionPoints
from headkv_vllm.config import Settings

NUM_QUERY_BLOCKS = 2


@st.composite
def requests(draw):
    """A budget, and the row that the manager makes of it."""
    window, block_size = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 16]))
    settings = Settings(budget=64, window=window, compress_every=64)
    settings = settings.model_copy(update={"compress_prefill": draw(st.booleans())})
    length = draw(st.integers(window + 3 * block_size, 300))
    num_compressed = draw(st.integers(0, (length - window) // block_size - 1))
    interval = draw(st.integers(0, 3)) if num_compressed else 0
    point = first_point(length, num_compressed, interval, settings, block_size)
    full = full_blocks(point, window, block_size)
    delay = point - length
    budget = RequestBudget(length, num_compressed, full, delay=delay, interval=interval)
    num_private = num_compressed + (NUM_QUERY_BLOCKS if interval else 0)
    row = BlockRow(length, tuple(range(1, num_private + 1)), (), 0, interval)
    return settings, block_size, budget, np.array(row.entries()[:4], dtype=np.int32)


@hypothesis_settings(deadline=None)
@given(requests(), st.integers(1, 2000))
def test_rows_agree_with_budgets(request, end):
    settings, block_size, budget, row = request
    points = CompressionPoints(settings, block_size, NUM_QUERY_BLOCKS)
    assert points.num_compressed_blocks(row) == budget.num_compressed_blocks
    assert points.first(row) == budget.first_point
    next_point = budget.next_point(end - 1, block_size)
    assert points.next(row, np.array(end)) == (NEVER if next_point is None else next_point)
    # A token with this end has as many tokens before it as are computed when the step begins.
    before = budget.num_replaced_blocks(end - 1, block_size)
    seen = int(points.replaced_blocks(row, np.array(end)))
    is_due = bool(points.are_due(row, np.array(end - 1)))
    # The step that completes a prompt compresses it, if that is its first point.
    by_prompt = budget.num_prompt_tokens if budget.delay == 0 else None
    assert is_due == (seen > before) or end - 1 == by_prompt
    assert seen == budget.num_replaced_blocks(end, block_size) or end == by_prompt
    if seen:
        previous = int(points.previous(row, np.array(end)))
        assert previous < end and (previous - settings.window) // block_size == seen
