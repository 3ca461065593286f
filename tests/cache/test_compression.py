# SPDX-License-Identifier: Apache-2.0
"""Compressed prompts: the head blocks hold the entries that the reference selects."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation import Bounds
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import num_query_blocks, queries_per_block
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression import Compressor, LayerLogits, Workspace
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.head_blocks import UnpackedHeadBlocks
from headkv_vllm.cache.request_compression import request_compression
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.cache.step_compression import StepCompression
from headkv_vllm.cache.window_queries import WindowQueries, window_places
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
        points = CompressionPoints(self.settings, BLOCK_SIZE, num_query_blocks=1)
        self.allocations = RowAllocations(static, AdaptiveAllocations(), points)
        entries = ROW.entries()
        entries[2] = list(POLICIES).index(policy)
        row = torch.tensor(entries, dtype=torch.int32)
        self.prompt = request_compression(row.numpy(), row, self.allocations, NUM_TOKENS)
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
        own = allocated_head_blocks(ROW.private_blocks, counts, layer, head)
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
    is_own[list(ROW.private_blocks)] = True
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


class Generating(Prompt):
    """The same request after it has generated tokens: it is compressed again in the same blocks."""

    INTERVAL = 3

    def __init__(self, policy="headkv", workspace=LARGE, **changes):
        super().__init__(policy, workspace, **changes)
        self.first = self.compress()
        self.after_first = self.flat.clone()
        num_tokens = NUM_TOKENS + self.INTERVAL * BLOCK_SIZE
        blocks = (*ROW.blocks, 14, 15, 16)
        entries = replace(ROW, blocks=blocks, private_blocks=(*ROW.private_blocks, 8)).entries()
        entries[2], entries[3] = list(POLICIES).index(policy), self.INTERVAL
        if self.prompt.policy.adaptive:
            self.allocations.adaptive.record(ROW.private_blocks, self.first)
        row = torch.tensor(entries, dtype=torch.int32)
        self.again = request_compression(row.numpy(), row, self.allocations, num_tokens)
        self.blocks = blocks
        generator = torch.Generator().manual_seed(2)
        self.window = torch.randn(L, WINDOW, H * GROUP_SIZE, HEAD_SIZE, generator=generator)

    def attended(self, layer, head):
        """The entries that a head attends before the second compression, in order."""
        kept = allocated_head_blocks(ROW.private_blocks, torch.tensor(self.first), layer, head)
        tail = [(block * L + layer) * H + head for block in self.blocks[NUM_FULL:]]
        num_tail = self.again.num_tokens - NUM_FULL * BLOCK_SIZE
        entries = self.after_first[kept + tail].flatten(0, 1)
        return entries[: len(kept) * BLOCK_SIZE + num_tail]

    def chosen(self, layer, head):
        """By the reference, from one head's entries alone: which ones it keeps, in order."""
        entries, size = self.attended(layer, head), BLOCK_SIZE
        num_kept = int(self.first[layer, head]) * size
        num_candidates = len(entries) - (self.again.num_tokens - self.again.num_full_blocks * size)
        if self.prompt.policy.positions == "recency":
            scores = reference.recency(num_candidates, self.settings.sink, self.flat.device)
            return reference.top_positions(scores[None], torch.tensor([num_kept]))[1]
        keys, values = entries[None].chunk(2, -1)
        query = self.window[layer].unflatten(1, (H, GROUP_SIZE))[:, head].transpose(0, 1)[None]
        attention = reference.window_attention(
            query,
            [keys.transpose(1, 2)],
            len(entries),
            float(SCALES[layer]),
            None,
            self.settings.query_reduction,
        )[:, :-WINDOW]
        # Only new entries are neighbours as in the text.
        pooled = reference.pool(attention[:, num_kept:], self.settings)
        scores = torch.cat((attention[:, :num_kept], pooled), 1)[:, :num_candidates]
        if self.settings.value_norm:
            scores *= values.abs().sum(-1)[:, :num_candidates]
        parts = (NUM_FULL, NUM_FULL + self.INTERVAL)
        arguments = (np.array([num_kept]), num_kept, torch.zeros(1, 1), *parts)
        return reference.ranked_again(scores, *arguments)[1]


@pytest.mark.parametrize("workspace", [LARGE, SMALL], ids=["at once", "in parts"])
@pytest.mark.parametrize("policy", ["headkv", "uniform", "adakv", "streaming"])
@pytest.mark.parametrize("changes", CHANGES)
def test_a_request_is_compressed_again(policy, changes, workspace):
    """Each head chooses among what it has kept and the tokens since, and keeps as many as before.

    The entries move within the request's compressed blocks, so none may be overwritten too early.
    """
    request = Generating(policy, workspace, **changes)
    assert not request.again.is_first and request.again.num_full_blocks == NUM_FULL + 3
    allocation = request.compressor.compress(request.again, request.window, range(L))
    assert np.array_equal(allocation, request.first)
    num_new = 0
    for layer, head in np.ndindex(L, H):
        positions = request.chosen(layer, head)
        expected = request.attended(layer, head)[positions]
        assert torch.equal(request.kept(allocation, layer, head), expected)
        num_new += int((positions >= allocation[layer, head] * BLOCK_SIZE).sum())
    assert num_new > 0  # entries of generated tokens were chosen too


@pytest.mark.parametrize("policy", ["headkv", "streaming"])
def test_heads_of_a_request_that_is_compressed_again_keep_the_order_of_importance(policy):
    """The first compression keeps the same entries as of a request that is compressed once."""
    request = Prompt(policy)
    repeated = replace(request.prompt, is_repeated=True)
    allocation = request.compressor.compress(repeated, request.query[:, -WINDOW:], range(L))
    for layer, head in np.ndindex(L, H):
        scores, number = request.scores(layer)[head], int(allocation[layer, head]) * BLOCK_SIZE
        ranked = reference.ranked_positions(scores[None], np.array([number]))[1]
        if policy == "streaming":
            ranked = ranked.sort().values
        assert torch.equal(
            request.kept(allocation, layer, head), request.entries(layer)[head, ranked]
        )


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "window"), [(4, 2, 8), (9, 3, 8), (8, 1, 9)])
def test_queries_wait_in_blocks_of_their_request(num_heads, num_kv_heads, window):
    per_block = queries_per_block(num_heads // num_kv_heads, BLOCK_SIZE)
    num_blocks = num_query_blocks(num_heads // num_kv_heads, window, BLOCK_SIZE)
    cache = torch.zeros(20, L, num_kv_heads, BLOCK_SIZE, 2 * HEAD_SIZE)
    waiting = WindowQueries(cache.unbind(1), num_heads, num_kv_heads, window)
    queries = torch.randn(2, L, window, num_heads, HEAD_SIZE)
    blocks = np.array([[3, 7, 11, 0, 1][:num_blocks], [4, 2, 9, 5, 6][:num_blocks]])
    for index in range(window):  # both requests generate a token in each step
        places = window_places(blocks, np.array([index, index]), per_block)
        for layer in range(L):
            waiting.write(layer, queries[:, layer, index], torch.from_numpy(places))
    for request, own in enumerate(blocks):
        assert torch.equal(waiting.read(torch.from_numpy(own)), queries[request])
    is_own = torch.zeros(20, dtype=torch.bool)
    is_own[blocks.ravel()] = True
    assert not cache[~is_own].any()
