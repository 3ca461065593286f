# SPDX-License-Identifier: Apache-2.0
"""Compressed prompts: the head blocks hold the entries that the reference selects."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation import Bounds
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression import (
    Compressor,
    LayerLogits,
    StepCompression,
    Workspace,
    prompt_compression,
)
from headkv_vllm.cache.head_blocks import UnpackedHeadBlocks
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.config import Settings
from headkv_vllm.kernels.reference import allocated_head_blocks
from tests.cache import reference

L, H, GROUP_SIZE, HEAD_SIZE, BLOCK_SIZE, WINDOW = 3, 2, 2, 16, 8, 4
NUM_TOKENS, NUM_FULL = 93, 11
ROW = BlockRow(NUM_TOKENS, (20, 3, 21), (5, 9, 1, 2, 30, 11, 12, 6, 7, 25, 4, 13), 0)
LARGE = Workspace(logits=2**26, keys=2**24, queries=2**26)
SMALL = Workspace(logits=1, keys=1, queries=1)
SCALES, SOFT_CAPS = torch.tensor([0.2, 0.4, 0.3]), torch.tensor([5.0, 9.0, 7.0])


class Prompt:
    """A cache that holds a prompt, and the queries of its observation window in every layer."""

    def __init__(self, policy="headkv", workspace=LARGE, has_soft_cap=False, **changes):
        generator = torch.Generator().manual_seed(0)
        self.settings = Settings(budget=28, window=WINDOW, policy=policy, **changes)
        self.flat = torch.randn(32 * L * H, BLOCK_SIZE, 2 * HEAD_SIZE, generator=generator)
        self.before = self.flat.clone()
        self.query = torch.randn(L, NUM_TOKENS, H * GROUP_SIZE, HEAD_SIZE, generator=generator)
        scores = np.random.default_rng(1).random((L, H)) ** 3
        static = AllocationCache(scores, self.settings)
        allocations = RowAllocations(static, AdaptiveAllocations(), WINDOW, BLOCK_SIZE)
        entries = ROW.entries()
        entries[2] = list(POLICIES).index(policy)
        row = torch.tensor(entries, dtype=torch.int32)
        where = (NUM_FULL, BLOCK_SIZE, NUM_TOKENS - WINDOW)
        self.prompt = prompt_compression(row.numpy()[:3], row, allocations, *where)
        self.soft_caps = SOFT_CAPS if has_soft_cap else None
        self.compressor = Compressor(
            UnpackedHeadBlocks(self.flat, L, H, torch.float32),
            LayerLogits(SCALES, self.soft_caps),
            self.settings,
            workspace,
        )

    def compress(self):
        """Compress all layers in one step. Returns n[L, H]."""
        found = []
        clock = Clock()
        step = StepCompression(
            self.compressor,
            torch.tensor([NUM_TOKENS - WINDOW]),
            lambda: [self.prompt],
            lambda _, allocation: found.append(allocation),
            clock,
        )
        for layer in range(L):
            assert not found
            step.add_layer(layer, self.query[layer])
        assert clock.finished == [1]
        return found[0]

    def scores(self, layer):
        """By the reference: the score of each position that each head may keep."""
        num_candidates = NUM_FULL * BLOCK_SIZE
        if self.prompt.policy.positions == "recency":
            scores = reference.recency(num_candidates, self.settings.sink, self.flat.device)
            return scores.expand(H, -1)
        keys, values = self.entries(layer).chunk(2, -1)
        window = self.query[layer, -WINDOW:].unflatten(1, (H, GROUP_SIZE)).permute(1, 2, 0, 3)
        cap = None if self.soft_caps is None else float(self.soft_caps[layer])
        attention = reference.window_attention(
            window,
            [keys.transpose(1, 2)],
            NUM_TOKENS,
            float(SCALES[layer]),
            cap,
            self.settings.query_reduction,
        )
        pooled = reference.pool(attention[:, :-WINDOW], self.settings)[:, :num_candidates]
        norms = values.abs().sum(-1)[:, :num_candidates]
        return pooled * norms if self.settings.value_norm else pooled

    def entries(self, layer):
        """The entries of the prompt before compression: [H, num_tokens, 2 * head_size]."""
        by_head = self.before.view(32, L, H, BLOCK_SIZE, -1)[list(ROW.blocks), layer]
        return by_head.transpose(0, 1).flatten(1, 2)[:, :NUM_TOKENS]

    def kept(self, allocation, layer, head):
        """The entries in the head blocks of a head: [n * block_size, 2 * head_size]."""
        counts = torch.tensor(allocation)
        own = allocated_head_blocks(ROW.compressed_blocks, counts, layer, head)
        return self.flat[own].flatten(0, 1)


class Clock:
    def __init__(self):
        self.finished = []

    def measuring(self):
        return nullcontext()

    def finish(self, num_prompts):
        self.finished.append(num_prompts)


CHANGES = [
    {},
    {"value_norm": True, "query_reduction": "max"},
    {"pooling": "avg", "kernel_size": 3},
]


@pytest.mark.parametrize("policy", ["headkv", "uniform", "adakv", "headkv_ada", "streaming"])
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("has_soft_cap", [False, True])
def test_head_blocks_hold_what_the_reference_chooses(policy, changes, has_soft_cap):
    prompt = Prompt(policy, has_soft_cap=has_soft_cap, **changes)
    allocation = prompt.compress()
    planned = prompt.prompt.allocation
    assert allocation.sum(1).tolist() == planned.sum(1).tolist()
    for layer in range(L):
        scores = prompt.scores(layer)
        expected = planned[layer]
        if prompt.prompt.policy.adaptive:
            total = int(planned[layer].sum())
            counts = reference.count_best(scores, total * BLOCK_SIZE)
            expected = split_layer(counts, total, Bounds(1, NUM_FULL))
        assert allocation[layer].tolist() == expected.tolist()
        heads, positions = reference.top_positions(scores, expected * BLOCK_SIZE)
        for head in range(H):
            entries = prompt.entries(layer)[head, positions[heads == head]]
            assert torch.equal(prompt.kept(allocation, layer, head), entries)


def test_blocks_of_other_requests_do_not_change():
    prompt = Prompt()
    prompt.compress()
    is_own = torch.zeros(32, dtype=torch.bool)
    is_own[list(ROW.compressed_blocks)] = True
    flat, before = (one.view(32, -1) for one in (prompt.flat, prompt.before))
    assert torch.equal(flat[~is_own], before[~is_own])
    assert not torch.equal(flat[is_own], before[is_own])


@pytest.mark.parametrize("policy", ["headkv", "adakv", "streaming"])
@pytest.mark.parametrize("changes", CHANGES)
def test_a_small_workspace_changes_nothing(policy, changes):
    """It makes the compression go layer by layer, head by head and block by block."""
    large, small = Prompt(policy, **changes), Prompt(policy, SMALL, **changes)
    assert np.array_equal(large.compress(), small.compress())
    assert torch.equal(large.flat, small.flat)


def test_a_window_whose_prompt_is_not_compressed_is_ignored():
    """On a GPU the host learns late which prompts a step completes."""
    prompt, recorded, clock = Prompt(), [], Clock()
    starts = torch.tensor([3, NUM_TOKENS - WINDOW, 40])
    step = StepCompression(
        prompt.compressor,
        starts,
        lambda: [None, prompt.prompt, None],
        lambda *which: recorded.append(which),
        clock,
    )
    for layer in range(L):
        step.add_layer(layer, prompt.query[layer])
    ((found, allocation),) = recorded
    assert found is prompt.prompt and clock.finished == [1]
    alone = Prompt()
    assert np.array_equal(alone.compress(), allocation)
    assert torch.equal(alone.flat, prompt.flat)
