# SPDX-License-Identifier: Apache-2.0
"""Plans of steps with adaptive policies, where prompts have decided some allocations."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.kernels.reference import allocated_head_blocks
from tests.cache.steps import steps


@settings(deadline=None)
@given(steps(policies=list(POLICIES)), st.integers(0, 2**32 - 1))
def test_an_adaptive_allocation_replaces_the_static_one(step, seed):
    """One step has requests of adaptive policies and of others."""
    adaptive, allocations = decided(step, seed)
    compressed = step.plan(adaptive).compressed
    requests = sorted({r for r, position in step.tokens if step.is_compressed(r, position)})
    assert (compressed is not None) == bool(requests)
    for sequence, request in enumerate(requests):
        allocation, row = allocations[request], step.rows[request]
        for layer, head in np.ndindex(*step.scores.shape):
            counts = torch.tensor(allocation)
            own = allocated_head_blocks(row.private_blocks, counts, layer, head)
            index = sequence * step.scores.shape[1] + head
            assert compressed.block_tables[layer][index, : len(own)].tolist() == own
            kept = int(allocation[layer, head]) - step.num_full_blocks(request)
            length = kept * step.block_size + step.ends[request]
            assert int(compressed.seq_lens[layer][index]) == length


def decided(step, seed):
    """Allocations that prompts have decided, and n[L, H] of each compressed request.

    An allocation that a prompt decides is any with the right sum in each layer.
    """
    adaptive, allocations, rng = AdaptiveAllocations(), {}, np.random.default_rng(seed)
    for request, row in enumerate(step.rows):
        if not row.private_blocks:
            continue
        allocations[request] = step.num_head_blocks(request).numpy()
        # A prompt that this step completes has not decided its allocation yet.
        is_after = step.starts[request] >= row.num_prompt_tokens
        if is_after and POLICIES[step.policy(request)].adaptive:
            allocations[request] = rng.permuted(allocations[request], axis=1)
            adaptive.record(row.private_blocks, allocations[request])
    return adaptive, allocations
