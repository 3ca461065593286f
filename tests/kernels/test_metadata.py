# SPDX-License-Identifier: Apache-2.0
"""What the device reads from rows: as the reference has it, and as the CPU backend does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.cache.block_row import slot_mapping
from headkv_vllm.kernels import reference
from headkv_vllm.kernels.dense_tables import dense_tables
from headkv_vllm.kernels.inputs import Buffers, DeviceRows, DeviceTokens
from headkv_vllm.kernels.kv_splits import BLOCK_N, kv_splits
from headkv_vllm.kernels.reference import attended_entries, attended_head_blocks
from headkv_vllm.kernels.step_tokens import step_tokens
from tests.cache.steps import steps
from tests.kernels.device_steps import (
    DEVICE,
    chunks_of,
    device_rows,
    device_tokens,
    token_arguments,
)

pytest.importorskip("triton")
FEW = settings(max_examples=40)
BUFFERS = Buffers(DEVICE)
"""Of all tests: none may count on what it finds in them."""


def integers(*values):
    """As int32 on the device."""
    return [torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in values]


class TestDenseTables:
    @FEW
    @given(steps(kinds=("prefill", "last", "resumed", "drafts")), st.integers(0, 20), st.data())
    def test_as_the_reference(self, step, more_tokens, data):
        chunks = chunks_of(step, more_tokens)
        named = data.draw(st.sets(st.sampled_from(range(len(step.rows))), min_size=1))
        chunks = replace(chunks, requests=chunks.requests[sorted(named)])
        made = dense_tables(device_rows(step), chunks)
        plain = reference.dense_tables(device_rows(step), chunks)
        assert torch.equal(made.seq_lens, plain.seq_lens)
        assert torch.equal(made.block_table, plain.block_table)
        for request, row in enumerate(step.rows):
            is_compressed = step.is_compressed(request, step.starts[request])
            is_read = request in named and not is_compressed
            assert int(made.seq_lens[request]) == (step.ends[request] if is_read else 1)
            if is_read:
                assert made.block_table[request, : len(row.blocks)].tolist() == list(row.blocks)


class TestTokens:
    @FEW
    @given(steps(), st.integers(0, 3))
    def test_as_the_reference_and_the_cpu_backend(self, step, padding):
        arguments = token_arguments(step, padding)
        tokens, slots = step_tokens(*arguments)
        plain, plain_slots = reference.step_tokens(*arguments)
        assert torch.equal(tokens.requests.cpu(), plain.requests)
        assert torch.equal(tokens.ends.cpu(), plain.ends)
        assert torch.equal(slots.cpu(), plain_slots)
        requests, positions = map(np.array, zip(*step.tokens, strict=True))
        expected = slot_mapping(step.block_table.numpy(), requests, positions, step.block_size)
        assert slots[: len(expected)].tolist() == expected.tolist()
        assert (slots[len(expected) :] == -1).all() and not tokens.ends[len(expected) :].any()

    def test_a_chunk_longer_than_a_program_takes(self):
        rows, starts, ends = integers([[700, 0, 0, 0, *range(5, 50)]], [0, 600], [650])
        stock = torch.zeros(600, dtype=torch.int64, device=DEVICE)
        tokens, slots = step_tokens(rows, starts, ends, stock, 600, 16, BUFFERS)
        assert tokens.ends.tolist() == list(range(51, 651))
        assert slots.tolist() == [80 + position for position in range(50, 650)]


class TestKVSplits:
    @FEW
    @given(steps(kinds=("decode", "drafts")), st.integers(0, 2), st.integers(1, 9))
    def test_as_the_reference_and_the_cpu_backend(self, step, padding, num_splits):
        rows, tokens = device_rows(step), device_tokens(step, padding)
        splits = kv_splits(rows, tokens, num_splits, BUFFERS)
        plain = reference.kv_splits(rows, tokens, num_splits, BUFFERS)
        for name in ("seq_lens", "first_split"):
            assert torch.equal(getattr(splits, name).cpu(), getattr(plain, name)), name
        for layer, stop in enumerate(splits.first_split[:, -1].tolist()):
            made = splits.sequences[layer, :stop].cpu()
            assert torch.equal(made, plain.sequences[layer, :stop])

    @FEW
    @given(steps(kinds=("decode",)))
    def test_heads_attend_what_they_attend_on_the_cpu(self, step):
        compressed_tokens = step.plan().compressed
        rows, tokens = device_rows(step), device_tokens(step)
        compressed = [r for r, row in enumerate(step.rows) if row.private_blocks]
        assert (compressed_tokens is None) == (not compressed)
        for place, request in enumerate(compressed):
            end = int(tokens.ends[request])
            for layer in range(rows.num_layers):
                tables = attended_head_blocks(rows, request, end, layer)
                lengths = attended_entries(rows, request, end, layer)
                for head, (table, length) in enumerate(zip(tables, lengths, strict=True)):
                    sequence = place * rows.num_kv_heads + head
                    assert int(compressed_tokens.seq_lens[layer, sequence]) == length
                    expected = compressed_tokens.block_tables[layer][sequence, : len(table)]
                    assert expected.tolist() == table

    def test_a_long_head_is_split_and_does_not_hold_up_the_rest(self):
        rows = torch.tensor(
            [[T, 0, 0, *range(1, 700)] for T in (8, 8, 10_000)], dtype=torch.int32, device=DEVICE
        )
        allocations = torch.zeros((700, 3), dtype=torch.int32, device=DEVICE)
        ends = torch.tensor([9, 9, 10_001], dtype=torch.int32, device=DEVICE)
        tokens = DeviceTokens(torch.arange(3, dtype=torch.int32, device=DEVICE), ends)
        splits = kv_splits(DeviceRows(rows, allocations, 1, 2, 16, 8), tokens, 10, BUFFERS)
        split_len = -(-20038 // (10 * BLOCK_N)) * BLOCK_N
        assert splits.first_split[0].diff().tolist() == [1, 1, 1, 1, *[10_001 // split_len + 1] * 2]

    def test_a_few_entries_more_make_no_split(self):
        """1,032 entries are one split where 1,024 are."""
        rows = torch.tensor([[9000, 0, 0, *range(1, 700)]], dtype=torch.int32, device=DEVICE)
        allocations = torch.zeros((700, 2), dtype=torch.int32, device=DEVICE)
        (requests,) = integers([0] * 4)
        (ends,) = integers([1032] * 4)
        one = DeviceRows(rows, allocations, 1, 1, 16, 8)
        splits = kv_splits(one, DeviceTokens(requests, ends), 4, BUFFERS)
        assert splits.first_split[0].tolist() == [0, 1, 2, 3, 4]


class TestDummySteps:
    """Where vLLM's slot mapping is -1, as in its dummy steps, no entry is written."""

    @FEW
    @given(steps(), st.data())
    def test_only_tokens_with_a_slot_of_vllms_are_written(self, step, data):
        rows, starts, ends, stock, *sizes = token_arguments(step, 0)
        dummies = data.draw(st.sets(st.integers(0, len(stock) - 1)))
        stock[sorted(dummies)] = -1
        tokens, slots = step_tokens(rows, starts, ends, stock, *sizes)
        expected = step.plan().slot_mapping.clone()
        expected[sorted(dummies)] = -1
        assert slots.tolist() == expected.tolist()
        assert (tokens.ends > 0).all()


def test_steps_of_one_size_find_theirs_in_one_place():
    buffers = Buffers(DEVICE)
    large, small = buffers.take("some", 4, 5), buffers.take("some", 2, 3)
    assert small.data_ptr() == large.data_ptr() == buffers.take("some", 4, 5).data_ptr()
    assert buffers.take("others", 4, 5).data_ptr() != large.data_ptr()


def test_a_step_longer_than_what_was_reserved_moves_nothing():
    """A graph goes on reading where it was captured."""
    buffers = Buffers(DEVICE)
    reserved = buffers.take("some", 4, 5)
    longer = buffers.take("some", 5, 5)
    assert longer.shape == (5, 5) and longer.data_ptr() != reserved.data_ptr()
    assert buffers.take("some", 4, 5).data_ptr() == reserved.data_ptr()
