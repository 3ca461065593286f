# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations

SHAPE = (2, 3)


def compress(adaptive, blocks, seed=0):
    """Record a random allocation n of a prompt. Returns n."""
    rng = np.random.default_rng(seed)
    total = len(blocks) * SHAPE[1]
    splits = [rng.multinomial(total - SHAPE[1], [1 / 3] * 3) for _ in range(SHAPE[0])]
    allocation = (1 + np.stack(splits)).astype(np.int32)
    adaptive.record(blocks, allocation)
    return allocation


def test_an_allocation_is_found_by_its_blocks():
    adaptive = AdaptiveAllocations()
    expected = {b: compress(adaptive, b, b[0]) for b in ((5, 6), (9,), (2, 8, 1))}
    for blocks, allocation in expected.items():
        assert adaptive.allocation(blocks).tolist() == allocation.tolist()
    adaptive.check_integrity()


def test_a_block_that_is_used_again_evicts_the_entry_that_it_was_part_of():
    adaptive = AdaptiveAllocations()
    compress(adaptive, (1, 2, 3))
    compress(adaptive, (4, 5))
    compress(adaptive, (7, 3))
    assert len(adaptive) == 2
    with pytest.raises(KeyError):
        adaptive.allocation((1, 2, 3))
    adaptive.check_integrity()


def test_a_request_with_some_of_anothers_blocks_does_not_read_its_allocation():
    adaptive = AdaptiveAllocations()
    compress(adaptive, (1, 2, 3))
    with pytest.raises(AssertionError):
        adaptive.allocation((1, 2))


@given(st.data())
def test_every_request_finds_its_own_allocation_in_a_pool_that_is_reused(data):
    """Requests arrive and end. Every live request always finds its own allocation."""
    adaptive, free, own = AdaptiveAllocations(), list(range(12)), {}
    for seed in range(data.draw(st.integers(1, 25))):
        if own and data.draw(st.booleans()):
            ended = data.draw(st.sampled_from(sorted(own)))
            own.pop(ended)
            free.extend(ended)
        num_blocks = data.draw(st.integers(0, min(3, len(free))))
        if num_blocks:
            picked = data.draw(st.permutations(free))[:num_blocks]
            free = [block for block in free if block not in picked]
            own[tuple(picked)] = compress(adaptive, picked, seed)
        for blocks, allocation in own.items():
            assert adaptive.allocation(blocks).tolist() == allocation.tolist()
        adaptive.check_integrity()
        assert len(adaptive) <= 12
