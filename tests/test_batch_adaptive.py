# SPDX-License-Identifier: Apache-2.0
"""Plans of steps where prompts have decided how layers split their head blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.batch import BatchPlanner
from headkv_vllm.block_row import BlockRow, head_blocks
from headkv_vllm.budgets.live import LiveAllotments
from tests.steps import Step, steps


@settings(deadline=None)
@given(steps(kinds=("decode", "drafts", "prefill", "last")), st.integers(0, 2**32 - 1))
def test_what_prompts_decided_takes_the_place_of_what_their_lengths_say(step, seed):
    decided = Decided(step, seed)
    by_head = decided.plan().by_head
    requests = sorted({r for r, position in step.tokens if step.is_by_head(r, position)})
    assert (by_head is not None) == bool(requests)
    for sequence, request in enumerate(requests):
        dealt, row = decided.num_head_blocks[request], step.rows[request]
        for layer, head in np.ndindex(*step.scores.shape):
            own = head_blocks(row.compressed_blocks, torch.tensor(dealt), layer, head)
            index = sequence * step.scores.shape[1] + head
            assert by_head.block_tables[layer, index, : len(own)].tolist() == own
            kept = int(dealt[layer, head]) - step.budget(request).num_full_blocks
            length = kept * step.block_size + step.ends[request]
            assert int(by_head.seq_lens[layer, index]) == length


class Decided:
    """The same step where the prompts of its compressed requests have dealt out their blocks.

    num_head_blocks: n[L, H] by request, any that has the layers' sums.
    """

    def __init__(self, step, seed):
        self.step, self.num_head_blocks = step, {}
        self.live = LiveAllotments(*step.scores.shape)
        rng = np.random.default_rng(seed)
        for request, row in enumerate(step.rows):
            # A row's prompt that this step completes has not decided anything.
            if row.compressed_blocks and step.starts[request] >= row.num_prompt_tokens:
                self.num_head_blocks[request] = self.deal(request, rng)

    def deal(self, request, rng):
        blocks = self.step.rows[request].compressed_blocks
        dealt = rng.permuted(self.step.num_head_blocks(request).numpy(), axis=1)
        self.live.begin(blocks)
        for layer, own in enumerate(dealt):
            self.live.record(blocks, layer, own)
        return dealt

    def plan(self):
        step = self.step
        planner = BatchPlanner(
            step.allotments, *step.scores.shape, step.block_size, step.window, self.live
        )
        return planner.plan(step.block_table, step.query_start_loc, step.seq_lens)


def test_where_the_prompt_decides_no_step_goes_on_after_it():
    step = Step((BlockRow(40, (50,), (51, 52, 53)),), (20,), (43,), np.ones((2, 2)), 16, 8, 0)
    with pytest.raises(AssertionError):
        Decided(step, 0).plan()
