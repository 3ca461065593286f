# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.budgets.live import LiveAllotments

SHAPE = (2, 3)


def compress(live, blocks, seed=0):
    """All layers decide; returns n."""
    rng = np.random.default_rng(seed)
    total = len(blocks) * SHAPE[1]
    live.begin(blocks)
    dealt = 1 + np.stack([rng.multinomial(total - SHAPE[1], [1 / 3] * 3) for _ in range(SHAPE[0])])
    for layer, own in enumerate(dealt.astype(np.int32)):
        live.record(blocks, layer, own)
    return dealt


def test_what_the_layers_decided_is_read_by_the_requests_blocks():
    live = LiveAllotments(*SHAPE)
    expected = {blocks: compress(live, blocks, blocks[0]) for blocks in ((5, 6), (9,), (2, 8, 1))}
    for blocks, dealt in expected.items():
        assert live.allotment(blocks).tolist() == dealt.tolist()
    live.check_integrity()


def test_a_layer_that_has_not_decided_is_noticed():
    live = LiveAllotments(*SHAPE)
    live.begin((4,))
    live.record((4,), 0, np.ones(3, dtype=np.int32))
    with pytest.raises(AssertionError):
        live.allotment((4,))


def test_a_block_in_other_hands_ends_what_it_was_part_of():
    live = LiveAllotments(*SHAPE)
    compress(live, (1, 2, 3))
    compress(live, (4, 5))
    compress(live, (7, 3))
    assert len(live) == 2
    with pytest.raises(KeyError):
        live.allotment((1, 2, 3))
    live.check_integrity()


def test_a_request_in_part_of_anothers_blocks_does_not_read_its_allotment():
    live = LiveAllotments(*SHAPE)
    compress(live, (1, 2, 3))
    with pytest.raises(AssertionError):
        live.allotment((1, 2))


@given(st.data())
def test_a_pool_that_is_used_again_and_again(data):
    """Requests come and go unannounced; those that live always read their own."""
    live, free, own = LiveAllotments(*SHAPE), list(range(12)), {}
    for seed in range(data.draw(st.integers(1, 25))):
        if own and data.draw(st.booleans()):
            ended = data.draw(st.sampled_from(sorted(own)))
            own.pop(ended)
            free.extend(ended)
        num_blocks = data.draw(st.integers(0, min(3, len(free))))
        if num_blocks:
            picked = data.draw(st.permutations(free))[:num_blocks]
            free = [block for block in free if block not in picked]
            own[tuple(picked)] = compress(live, picked, seed)
        for blocks, dealt in own.items():
            assert live.allotment(blocks).tolist() == dealt.tolist()
        live.check_integrity()
        assert len(live) <= 12
