# SPDX-License-Identifier: Apache-2.0
"""The tables that are kept from step to step equal newly built ones."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import first_point
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.head_block_tables import HeadBlockTables, head_seq_lens
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.config import Settings
from tests.cache import reference

NUM_LAYERS, NUM_KV_HEADS, BLOCK_SIZE, WINDOW = 2, 3, 4, 3
NUM_BLOCKS, WIDTH = 160, 60
SETTINGS = Settings(budget=1024, window=WINDOW)
ADAPTIVE = [index for index, policy in enumerate(POLICIES.values()) if policy.adaptive]
STATIC = [index for index, policy in enumerate(POLICIES.values()) if not policy.adaptive]


class Decoding(RuleBasedStateMachine):
    """Requests arrive, grow, end and change their order. Their blocks are soon used again."""

    def __init__(self):
        super().__init__()
        scores = np.random.default_rng(0).random((NUM_LAYERS, NUM_KV_HEADS)) ** 3
        self.adaptive = AdaptiveAllocations()
        static = AllocationCache(scores, SETTINGS)
        self.points = CompressionPoints(SETTINGS, BLOCK_SIZE, num_query_blocks=1)
        self.allocations = RowAllocations(static, self.adaptive, self.points)
        self.tables = HeadBlockTables(self.allocations, NUM_LAYERS, NUM_KV_HEADS, BLOCK_SIZE)
        self.free = list(range(1, NUM_BLOCKS))
        self.requests = []

    def take(self, num_blocks):
        return [self.free.pop() for _ in range(num_blocks)]

    @precondition(lambda self: len(self.free) > 40)
    @rule(
        data=st.data(),
        policy=st.sampled_from(STATIC + ADAPTIVE),
        interval=st.sampled_from([0, 1, 2]),
    )
    def begin(self, data, policy, interval):
        num_full = data.draw(st.integers(2, 8))
        num_prompt = WINDOW + num_full * BLOCK_SIZE + data.draw(st.integers(0, BLOCK_SIZE - 1))
        num_compressed = data.draw(st.integers(1, num_full - 1))
        first = first_point(num_prompt, num_compressed, interval, SETTINGS, BLOCK_SIZE)
        blocks, compressed = self.take(-(-(first + 1) // BLOCK_SIZE)), self.take(num_compressed)
        private = (*compressed, *self.take(1 if interval else 0))
        row = BlockRow(num_prompt, private, tuple(blocks), policy, interval)
        if policy in ADAPTIVE:
            total, decided = num_compressed * NUM_KV_HEADS, []
            for _ in range(NUM_LAYERS):
                first = data.draw(st.integers(1, total - NUM_KV_HEADS + 1))
                split = [first, total - first - 1, 1]
                decided.append(split if min(split) >= 1 else [num_compressed] * NUM_KV_HEADS)
            self.adaptive.record(compressed, np.array(decided, dtype=np.int32))
        index = data.draw(st.integers(0, len(self.requests)))
        self.requests.insert(index, (row, first + 1))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data):
        index = data.draw(st.integers(0, len(self.requests) - 1))
        row, _ = self.requests[index]
        self.requests[index] = self.requests[-1]  # vLLM moves the last request like this
        self.requests.pop()
        self.free += [*row.blocks, *row.private_blocks]

    @precondition(lambda self: self.requests and len(self.free) > 20)
    @rule(data=st.data())
    def decode(self, data):
        for index, (row, seq_len) in enumerate(self.requests):
            longer = seq_len + data.draw(st.integers(1, 2))
            more = -(-longer // BLOCK_SIZE) - len(row.blocks)
            if more > 0:
                blocks = (*row.blocks, *self.take(more))
                row = replace(row, blocks=blocks)
            if len(row.entries()) <= WIDTH:
                self.requests[index] = (row, longer)

    @precondition(lambda self: self.requests)
    @invariant()
    def tables_equal_the_reference(self):
        entries = [row.entries() for row, _ in self.requests]
        rows = np.array([row + [0] * (WIDTH - len(row)) for row in entries], dtype=np.int32)
        seq_lens = np.array([seq_len for _, seq_len in self.requests], dtype=np.int32)
        lengths, tables = self.tables.update(rows, seq_lens)
        kept = torch.from_numpy(np.stack([self.allocations.allocation(row) for row in rows]))
        full = torch.from_numpy(self.points.replaced_blocks(rows, seq_lens))
        arguments = (kept, full, torch.from_numpy(seq_lens), BLOCK_SIZE)
        expected = reference.head_block_tables(torch.from_numpy(rows), *arguments)
        assert torch.equal(lengths, head_seq_lens(*arguments))
        for layer, table in enumerate(tables):
            for head, length in enumerate(lengths[layer].tolist()):
                num_blocks = -(-length // BLOCK_SIZE)
                own = expected[layer, head, :num_blocks]
                assert torch.equal(table[head, :num_blocks], own)
        self.tables.check_integrity()


Decoding.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDecoding = Decoding.TestCase


def test_tables_are_rebuilt_only_when_a_row_changes(monkeypatch):
    """The tables of a request are built when it arrives and when it gets a block, only then."""
    machine = Decoding()
    row = BlockRow(20, (1,), tuple(range(2, 10)), STATIC[0])
    calls = []
    rebuild = machine.tables._rebuild
    monkeypatch.setattr(
        machine.tables, "_rebuild", lambda *arguments: (calls.append(1), rebuild(*arguments))
    )
    rows = np.array([row.entries() + [0] * 20], dtype=np.int32)
    for seq_len in range(21, 29):
        machine.tables.update(rows, np.array([seq_len], dtype=np.int32))
    assert len(calls) == 2
