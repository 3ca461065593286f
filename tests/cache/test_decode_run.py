# SPDX-License-Identifier: Apache-2.0
"""The batch of a step that continues the last one equals the batch of a new plan."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.steps import steps

NEXT = st.sampled_from(["grow"] * 8 + ["more", "again", "move", "swap", "end", "stay"])


@settings(deadline=None)
@given(steps(kinds=("decode",), intervals=(0, 1, 2)), st.lists(NEXT, max_size=30))
def test_each_step_equals_a_new_plan(step, what_happens):
    planner = step.planner()
    for what in ["stay", *what_happens]:
        step = after(step, what)
        assert_same(step.plan_by(planner), step.plan(), step)


@settings(deadline=None)
@given(steps(kinds=("decode",), intervals=(0, 2)))
def test_a_decode_run_continues_until_a_block_is_full_or_a_window_begins(step):
    if not all(row.private_blocks for row in step.rows):
        return
    planner = step.planner()
    batch = step.plan_by(planner)
    for _ in range(2 * step.block_size):
        is_full = any(end % step.block_size == 0 for end in step.ends)
        is_full |= batch.waiting is not None or waits_next(step)
        step = after(step, "grow")
        last, before = batch, batch.slot_mapping.clone()
        batch = step.plan_by(planner)
        assert batch.continues_last == (not is_full)
        assert torch.equal(last.slot_mapping, before)  # an earlier batch is not changed


def waits_next(step):
    """Whether a query of the next step waits for a compression."""
    for request, row in enumerate(step.rows):
        every = row.interval * step.block_size
        if every:
            left = (step.first_point(request) - step.ends[request]) % every or every
            if left <= step.window:
                return True
    return False


def after(step, what):
    """The step that follows.

    grow: each request computes one token. more: two tokens each. again: the last token again, and
    one more. move: one token each, and the first request has other blocks. swap: the requests
    change their order. end: one request ends. stay: nothing changes.
    A request that needs a block gets two, so a row does not change each time a block is full.
    """
    rows, starts, ends = list(step.rows), list(step.starts), list(step.ends)
    if what == "end" and len(rows) > 1:
        rows[0], starts[0], ends[0] = rows.pop(), starts.pop(), ends.pop()
    elif what == "swap":
        rows, starts, ends = rows[::-1], starts[::-1], ends[::-1]
    if what != "stay":
        starts = starts if what == "again" else list(ends)
        ends = [end + (2 if what == "more" else 1) for end in ends]
    used = {block for row in rows for block in (*row.blocks, *row.private_blocks)}
    free = (block for block in range(1, 4000) if block not in used)
    for index, row in enumerate(rows):
        if what == "move" and index == 0:
            rows[0] = row = replace(row, blocks=tuple(next(free) for _ in row.blocks))
        if -(-ends[index] // step.block_size) > len(row.blocks):
            rows[index] = replace(row, blocks=(*row.blocks, next(free), next(free)))
    return replace(step, rows=tuple(rows), starts=tuple(starts), ends=tuple(ends))


def assert_same(batch, expected, step):
    assert (batch.waiting is None) == (expected.waiting is None)
    assert torch.equal(batch.slot_mapping, expected.slot_mapping)
    assert (batch.dense is None) == (expected.dense is None)
    assert (batch.compressed is None) == (expected.compressed is None)
    if batch.compressed is None:
        return
    one, other = batch.compressed, expected.compressed
    assert torch.equal(one.query_start_loc, other.query_start_loc)
    assert torch.equal(one.seq_lens, other.seq_lens)
    assert torch.equal(torch.stack(one.layer_seq_lens), other.seq_lens)
    for layer, (table, expected_table) in enumerate(
        zip(one.block_tables, other.block_tables, strict=True)
    ):
        for head, length in enumerate(other.seq_lens[layer].tolist()):
            num_blocks = -(-length // step.block_size)
            assert torch.equal(table[head, :num_blocks], expected_table[head, :num_blocks])
