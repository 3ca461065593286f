# SPDX-License-Identifier: Apache-2.0
"""One layer's prompt in its head blocks, as the plain twins of the selection choose."""

import numpy as np
import pytest
import torch
from vllm.platforms import current_platform

from headkv_vllm.batch_planner import BatchPlanner
from headkv_vllm.block_row import BlockRow
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.engine.backends import cpu_compaction
from headkv_vllm.engine.backends.cpu_cache import LayerCache, gather_keys, gather_values
from headkv_vllm.engine.backends.cpu_compaction import LayerAttention, compress
from headkv_vllm.row_allotments import RowAllotments
from headkv_vllm.selection import pool_plain, top_positions_plain, window_attention_plain

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU build", allow_module_level=True)
current_platform.import_kernels()

NUM_LAYERS, NUM_KV_HEADS, GROUP_SIZE, HEAD_SIZE, BLOCK_SIZE = 2, 3, 2, 32, 32
NUM_TOKENS, NUM_COMPRESSED = 413, 4
ROW = BlockRow(NUM_TOKENS, (20, 3, 21, 8), (5, 9, 1, 2, 30, 11, 12, 6, 7, 25, 4, 13, 10), 0)


class Layer:
    """The second layer of a cache that holds a prompt, about to be compressed."""

    def __init__(self, **changes):
        generator = torch.Generator().manual_seed(0)
        self.settings = Settings(budget=136, **changes)
        self.live = LiveAllotments(NUM_LAYERS, NUM_KV_HEADS)
        scores = np.random.default_rng(1).random((NUM_LAYERS, NUM_KV_HEADS)) ** 3
        cache, window = AllotmentCache(scores, self.settings), self.settings.window
        allotments = RowAllotments(cache, self.live, window, BLOCK_SIZE)
        self.planner = BatchPlanner(allotments, NUM_LAYERS, NUM_KV_HEADS, BLOCK_SIZE, window)
        shape = (32, NUM_LAYERS, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
        self.blocks = torch.randn(shape, generator=generator)
        heads = NUM_KV_HEADS * GROUP_SIZE
        self.window = torch.randn(window, heads, HEAD_SIZE, generator=generator)

    def compress(self, policy="headkv"):
        """Returns what was planned, and each head's keys and values after it."""
        entries = ROW.entries()
        entries[2] = list(POLICIES).index(policy)
        starts, ends = torch.tensor([0, NUM_TOKENS]).int(), torch.tensor([NUM_TOKENS]).int()
        (planned,) = self.planner.plan(torch.tensor([entries]).int(), starts, ends).compressions
        if planned.policy.adaptive:
            self.live.begin(planned.compressed_blocks)
        cache = LayerCache.of(self.blocks[:, 1], 1, NUM_LAYERS, "vec")
        attention = LayerAttention(1, HEAD_SIZE**-0.5, 0.0)
        compress(self.window, cache, planned, attention, self.settings, self.live)
        flat = self.blocks.view(-1, 1, BLOCK_SIZE, 2 * HEAD_SIZE)
        dealt = (planned.slots[1].view(-1, BLOCK_SIZE)[:, 0] // BLOCK_SIZE).long()
        return planned, gather_keys(flat, dealt, "vec")[0].T, gather_values(flat, dealt, "vec")[0]


def test_head_blocks_hold_what_the_plain_twins_choose():
    layer = Layer()
    planned, found_keys, found_values = layer.compress()
    layer = Layer()
    own, blocks = layer.blocks[:, 1], torch.tensor(ROW.blocks)
    keys, values = gather_keys(own, blocks, "vec"), gather_values(own, blocks, "vec")
    attention = window_attention_plain(layer.window, [keys], NUM_TOKENS, HEAD_SIZE**-0.5)
    pooled = pool_plain(attention[:, : -layer.settings.window], layer.settings)
    scores = pooled[:, : planned.num_candidates]
    heads, positions = top_positions_plain(scores, planned.num_head_blocks[1] * BLOCK_SIZE)
    assert len(set(planned.num_head_blocks[1].tolist())) > 1  # heads are ragged
    assert torch.equal(found_keys, keys[heads, :, positions])
    assert torch.equal(found_values, values[heads, positions])


@pytest.mark.parametrize("policy", ["headkv", "adakv", "streaming"])
@pytest.mark.parametrize("changes", [{}, {"value_norm": True, "query_reduction": "max"}])
def test_pieces_and_groups_of_heads_change_nothing(monkeypatch, policy, changes):
    _, expected_keys, expected_values = Layer(**changes).compress(policy)
    monkeypatch.setattr(cpu_compaction, "PIECE_BYTES", 1)
    monkeypatch.setattr(cpu_compaction, "LOGITS_BYTES", 1)
    _, keys, values = Layer(**changes).compress(policy)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)
