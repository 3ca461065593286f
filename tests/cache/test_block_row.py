# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.cache.block_row import (
    HEADER_SIZE,
    BlockRow,
    dense_block_table,
    num_row_entries,
    slot_mapping,
)
from headkv_vllm.cache.head_block_tables import head_block_tables, head_seq_lens
from headkv_vllm.kernels.reference import allocated_head_blocks
from tests.cache import reference


@dataclass(frozen=True)
class Requests:
    """The arguments from which head-block tables are built.

    num_head_blocks: [num_reqs, L, H]. A request without compressed blocks has n = 0 and F = 0.
    """

    block_table: torch.Tensor
    num_head_blocks: torch.Tensor
    num_full_blocks: torch.Tensor
    seq_lens: torch.Tensor
    block_size: int

    @property
    def arguments(self):
        lengths = (self.num_full_blocks, self.seq_lens, self.block_size)
        return (self.block_table, self.num_head_blocks, *lengths)


@st.composite
def requests(draw, may_be_uncompressed=True):
    block_size = draw(st.integers(1, 32))
    num_layers, num_kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rows, allocated, num_full, seq_lens = [], [], [], []
    pool = draw(st.permutations(range(1, 160)))
    for _ in range(draw(st.integers(1, 4))):
        seq_len = draw(st.integers(1, 8 * block_size))
        full = draw(st.integers(0, seq_len // block_size))
        low = 0 if may_be_uncompressed else 1
        num_compressed = draw(st.integers(low, 3)) if full or not may_be_uncompressed else 0
        num_blocks = -(-seq_len // block_size) + draw(st.integers(0, 2))
        compressed = [pool.pop() for _ in range(num_compressed)]
        blocks = [pool.pop() for _ in range(num_blocks)]
        policy = draw(st.integers(0, 6))
        rows.append(BlockRow(seq_len, tuple(compressed), tuple(blocks), policy).entries())
        heads = num_layers * num_kv_heads
        cuts = sorted(
            draw(
                st.lists(
                    st.integers(0, num_compressed * heads), min_size=heads - 1, max_size=heads - 1
                )
            )
        )
        allocated.append([b - a for a, b in pairwise([0, *cuts, num_compressed * heads])])
        num_full.append(full if num_compressed else 0)
        seq_lens.append(seq_len)
    width = max(map(len, rows)) + draw(st.integers(0, 3))
    filler = draw(st.integers(0, 5))
    table = [row + [filler] * (width - len(row)) for row in rows]
    return Requests(
        torch.tensor(table, dtype=torch.int32),
        torch.tensor(allocated, dtype=torch.int32).view(-1, num_layers, num_kv_heads),
        torch.tensor(num_full, dtype=torch.int32),
        torch.tensor(seq_lens, dtype=torch.int32),
        block_size,
    )


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 99)),
    st.lists(st.integers(1, 99), min_size=1),
    st.integers(0, 6),
    st.integers(0, 99),
)
def test_a_row_is_read_back_from_its_entries(length, private, blocks, policy, interval):
    row = BlockRow(length, tuple(private), tuple(blocks), policy, interval)
    entries = row.entries()
    assert BlockRow.from_entries(entries) == row
    assert entries[:HEADER_SIZE] == [length, len(private), policy, interval]
    assert entries[HEADER_SIZE + len(private) :] == blocks
    assert len(entries) == num_row_entries(len(private), len(blocks))


@settings(deadline=None)
@given(requests(), st.data())
def test_slots_equal_the_reference(found, data):
    pairs = [
        (request, position)
        for request, seq_len in enumerate(found.seq_lens.tolist())
        for position in range(seq_len)
    ]
    chosen = data.draw(st.lists(st.sampled_from(pairs), max_size=40))
    indices = np.array([pair[0] for pair in chosen], dtype=np.int64)
    positions = np.array([pair[1] for pair in chosen], dtype=np.int64)
    arguments = (found.block_table.numpy(), indices, positions, found.block_size)
    slots = slot_mapping(*arguments)
    assert slots.dtype == np.int64
    assert slots.tolist() == reference.slot_mapping(*arguments).tolist()


def test_position_x_is_in_the_block_of_entry_4_plus_m_plus_x_over_block_size():
    rows = [[40, 2, 1, 3, 7, 8, 11, 12, 13], [3, 0, 5, 0, 9, 0, 0, 0, 0]]
    requests, positions = np.array([0, 0, 0, 1]), np.array([0, 17, 39, 2])
    slots = slot_mapping(np.array(rows, dtype=np.int32), requests, positions, block_size=16)
    assert slots.tolist() == [11 * 16, 12 * 16 + 1, 13 * 16 + 7, 9 * 16 + 2]


@settings(deadline=None)
@given(requests(), st.data())
def test_dense_block_tables_equal_the_reference(found, data):
    max_blocks = found.block_table.shape[1] - HEADER_SIZE
    num_blocks = data.draw(st.integers(1, max_blocks))
    table = dense_block_table(found.block_table, num_blocks)
    assert table.dtype == torch.int32
    assert table.shape == (len(found.seq_lens), num_blocks)
    assert torch.equal(table, reference.dense_block_table(found.block_table, num_blocks))


@settings(deadline=None, max_examples=200)
@given(requests())
def test_head_block_tables_equal_the_reference(found):
    tables = head_block_tables(*found.arguments)
    expected = reference.head_block_tables(*found.arguments)
    assert tables.dtype == torch.int32
    assert tables.shape == expected.shape
    assert torch.equal(tables, expected)


@settings(deadline=None)
@given(requests())
def test_a_head_attends_its_kept_entries_and_the_tail(found):
    lengths = head_seq_lens(
        found.num_head_blocks, found.num_full_blocks, found.seq_lens, found.block_size
    )
    num_reqs, num_layers, num_kv_heads = found.num_head_blocks.shape
    assert lengths.dtype == torch.int32
    assert lengths.shape == (num_layers, num_reqs * num_kv_heads)
    for request in range(num_reqs):
        tail = found.seq_lens[request] - found.num_full_blocks[request] * found.block_size
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                kept = found.num_head_blocks[request, layer, head] * found.block_size
                assert lengths[layer, request * num_kv_heads + head] == kept + tail


@settings(deadline=None)
@given(requests(may_be_uncompressed=False))
def test_every_allocated_head_block_belongs_to_exactly_one_head(found):
    tables = head_block_tables(*found.arguments)
    num_reqs, num_layers, num_kv_heads = found.num_head_blocks.shape
    heads_per_block = num_layers * num_kv_heads
    reached = []
    for request in range(num_reqs):
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                kept = int(found.num_head_blocks[request, layer, head])
                reached += tables[layer, request * num_kv_heads + head, :kept].tolist()
    compressed = [
        block
        for row in found.block_table.tolist()
        for block in BlockRow.from_entries(row).private_blocks
    ]
    allocated = [
        block * heads_per_block + i for block in compressed for i in range(heads_per_block)
    ]
    assert sorted(reached) == sorted(allocated)
    assert len(set(reached)) == len(reached)


@pytest.mark.parametrize(
    ("layer", "head", "expected"), [(0, 0, [20, 21, 22]), (0, 1, []), (1, 0, [23]), (1, 1, [32])]
)
def test_head_blocks_are_allocated_in_the_order_of_layers_and_heads(layer, head, expected):
    allocated = torch.tensor([[3, 0], [1, 1]])
    assert allocated_head_blocks((5, 8), allocated, layer, head) == expected
