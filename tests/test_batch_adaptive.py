# SPDX-License-Identifier: Apache-2.0
"""Plans of steps where some prompts have decided how layers split their head blocks."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.block_row import head_blocks
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.budgets.registry import POLICIES
from tests.steps import steps


@settings(deadline=None)
@given(steps(policies=list(POLICIES)), st.integers(0, 2**32 - 1))
def test_what_prompts_decided_takes_the_place_of_what_their_lengths_say(step, seed):
    """Requests of policies that leave it to the prompt and of others are in one step."""
    decided = Decided(step, seed)
    by_head = decided.plan().by_head
    requests = sorted({r for r, position in step.tokens if step.is_by_head(r, position)})
    assert (by_head is not None) == bool(requests)
    for sequence, request in enumerate(requests):
        dealt, row = decided.num_head_blocks[request], step.rows[request]
        for layer, head in np.ndindex(*step.scores.shape):
            own = head_blocks(row.compressed_blocks, torch.tensor(dealt), layer, head)
            index = sequence * step.scores.shape[1] + head
            assert by_head.block_tables[layer][index, : len(own)].tolist() == own
            kept = int(dealt[layer, head]) - step.num_full_blocks(request)
            length = kept * step.block_size + step.ends[request]
            assert int(by_head.seq_lens[layer][index]) == length


class Decided:
    """The same step where the prompts of adaptive policies have dealt out their blocks.

    num_head_blocks: n[L, H] by compressed request: that of its policy, or, where the prompt has
        decided, any that has the layers' sums.
    """

    def __init__(self, step, seed):
        self.step, self.num_head_blocks = step, {}
        self.live = LiveAllotments(*step.scores.shape)
        rng = np.random.default_rng(seed)
        for request, row in enumerate(step.rows):
            if not row.compressed_blocks:
                continue
            self.num_head_blocks[request] = step.num_head_blocks(request).numpy()
            # A prompt that this step completes has not decided anything.
            is_after = step.starts[request] >= row.num_prompt_tokens
            if is_after and POLICIES[step.policy(request)].adaptive:
                self.num_head_blocks[request] = self.deal(request, rng)

    def deal(self, request, rng):
        blocks = self.step.rows[request].compressed_blocks
        dealt = rng.permuted(self.num_head_blocks[request], axis=1)
        self.live.begin(blocks)
        for layer, own in enumerate(dealt):
            self.live.record(blocks, layer, own)
        return dealt

    def plan(self):
        return self.step.plan(self.live)
