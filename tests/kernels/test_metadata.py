# SPDX-License-Identifier: Apache-2.0
"""What is read off rows on the device: as its plain twins have it, and as the CPU backend does."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headkv_vllm.block_row import slot_mapping
from headkv_vllm.budgets.allotment import integer_weights
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.kernels.allotment import HeadWeights, first_head_blocks, first_head_blocks_plain
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.rows import (
    DeviceRows,
    DeviceTokens,
    attended_head_blocks,
    attended_tokens,
)
from headkv_vllm.kernels.step_tokens import step_tokens, step_tokens_plain
from headkv_vllm.kernels.work_list import PIECE, work_list, work_list_plain
from tests.kernels.device_steps import DEVICE, device_rows, device_tokens, token_arguments
from tests.steps import STATIC, steps

pytest.importorskip("triton")
FEW = settings(max_examples=40)
BUFFERS = Buffers(DEVICE)
"""Of all tests: none may count on what it finds in them."""


def weights_of(scores: np.ndarray, window: int) -> HeadWeights:
    """Of all policies, at a K of 1: they are in proportion to it."""
    asked = Settings(budget=1024, window=window)
    shares = [policy.shares(scores, 1, 2, asked).ravel() for policy in POLICIES.values()]
    return HeadWeights.of(np.stack(shares), DEVICE)


class TestAllotment:
    @FEW
    @given(steps())
    def test_as_the_plain_twin_and_the_cpu_backend(self, step):
        weights = weights_of(step.scores, step.window)
        arguments = (step.block_table.to(DEVICE), weights, step.window, step.block_size, 1, BUFFERS)
        first = first_head_blocks(*arguments)
        assert torch.equal(first, first_head_blocks_plain(*arguments))
        assert torch.equal(first.cpu(), device_rows(step).first.cpu())

    @FEW
    @given(st.data())
    def test_extreme_weights(self, data):
        """Equal, without a share, and so heavy that a head is full."""
        num_heads = data.draw(st.integers(1, 40))
        share = st.sampled_from([0.0, 1.0, 1.0, 2.0, 1e-7, 1e9])
        shares = np.array(data.draw(st.lists(share, min_size=num_heads, max_size=num_heads)))
        assume(shares.any())
        most = data.draw(st.integers(2, 3000))
        num_blocks = data.draw(st.integers(1, most - 1))
        fewest = data.draw(st.integers(1, num_blocks))
        rows = torch.tensor([[most * 16 + 8, num_blocks, 0]], dtype=torch.int32, device=DEVICE)
        weights = HeadWeights.of(shares[None], DEVICE)
        first = first_head_blocks(rows, weights, 8, 16, fewest, BUFFERS)
        plain = first_head_blocks_plain(rows, weights, 8, 16, fewest, BUFFERS)
        assert torch.equal(first, plain)
        assert int(first[0, -1]) == num_blocks * num_heads

    def test_every_policy_shares_in_proportion_to_what_there_is(self):
        """So that one table of weights does for all prompts."""
        scores = np.random.default_rng(0).random((4, 8)) ** 4
        asked = Settings(budget=1024)
        for policy in map(POLICIES.get, STATIC):
            few, many = (policy.shares(scores, k, 9000, asked).ravel() for k in (1, 8191))
            assert np.array_equal(integer_weights(few), integer_weights(many))

    def test_rows_that_fill_a_batch_up_have_nothing(self):
        rows = torch.zeros((2, 9), dtype=torch.int32, device=DEVICE)
        weights = weights_of(np.ones((2, 3)), 8)
        assert not first_head_blocks(rows, weights, 8, 16, 1, BUFFERS).any()


class TestTokens:
    @FEW
    @given(steps(), st.integers(0, 3))
    def test_as_the_plain_twin_and_the_cpu_backend(self, step, padding):
        arguments = token_arguments(step, padding)
        tokens, slots = step_tokens(*arguments)
        plain, plain_slots = step_tokens_plain(*arguments)
        assert torch.equal(tokens.requests.cpu(), plain.requests)
        assert torch.equal(tokens.ends.cpu(), plain.ends)
        assert torch.equal(slots.cpu(), plain_slots)
        requests, positions = map(np.array, zip(*step.tokens, strict=True))
        expected = slot_mapping(step.block_table.numpy(), requests, positions, step.block_size)
        assert slots[: len(expected)].tolist() == expected.tolist()
        assert (slots[len(expected) :] == -1).all() and not tokens.ends[len(expected) :].any()

    def test_a_chunk_longer_than_a_program_takes(self):
        values = ([[700, 0, 0, *range(5, 50)]], [0, 600], [650])
        rows, starts, ends = (torch.tensor(v, dtype=torch.int32, device=DEVICE) for v in values)
        tokens, slots = step_tokens(rows, starts, ends, 600, 600, 16, BUFFERS)
        assert tokens.ends.tolist() == list(range(51, 651))
        assert slots.tolist() == [80 + position for position in range(50, 650)]


class TestWorkList:
    @FEW
    @given(steps(kinds=("decode", "drafts")), st.integers(0, 2), st.integers(1, 9))
    def test_as_the_plain_twin_and_the_cpu_backend(self, step, padding, num_programs):
        rows, tokens = device_rows(step), device_tokens(step, padding)
        work = work_list(rows, tokens, num_programs, BUFFERS)
        plain = work_list_plain(rows, tokens, num_programs, BUFFERS)
        for name in ("seq_lens", "first_piece", "piece_len"):
            assert torch.equal(getattr(work, name).cpu(), getattr(plain, name)), name
        for layer, stop in enumerate(work.first_piece[:, -1].tolist()):
            made = work.sequences[layer, :stop].cpu()
            assert torch.equal(made, plain.sequences[layer, :stop])

    @FEW
    @given(steps(kinds=("decode",)))
    def test_heads_attend_what_they_attend_on_the_cpu(self, step):
        by_head = step.plan().by_head
        rows, tokens = device_rows(step), device_tokens(step)
        compressed = [r for r, row in enumerate(step.rows) if row.compressed_blocks]
        assert (by_head is None) == (not compressed)
        for place, request in enumerate(compressed):
            end = int(tokens.ends[request])
            for layer in range(rows.num_layers):
                tables = attended_head_blocks(rows, request, end, layer)
                lengths = attended_tokens(rows, request, end, layer)
                for head, (table, length) in enumerate(zip(tables, lengths, strict=True)):
                    sequence = place * rows.num_kv_heads + head
                    assert int(by_head.seq_lens[layer, sequence]) == length
                    expected = by_head.block_tables[layer][sequence, : len(table)]
                    assert expected.tolist() == table

    def test_pieces_share_the_work_evenly(self):
        """A head that is far longer than the others is cut, and so it does not hold up the rest."""
        rows = torch.tensor(
            [[T, 0, 0, *range(1, 700)] for T in (8, 8, 10_000)], dtype=torch.int32, device=DEVICE
        )
        first = torch.zeros((3, 3), dtype=torch.int32, device=DEVICE)
        ends = torch.tensor([9, 9, 10_001], dtype=torch.int32, device=DEVICE)
        tokens = DeviceTokens(torch.arange(3, dtype=torch.int32, device=DEVICE), ends)
        work = work_list(DeviceRows(rows, first, 1, 2, 16, 8), tokens, 10, BUFFERS)
        assert int(work.piece_len) == -(-20038 // (10 * PIECE)) * PIECE
        assert work.first_piece[0].diff().tolist() == [1, 1, 1, 1, 5, 5]


def test_steps_of_one_size_find_theirs_in_one_place():
    buffers = Buffers(DEVICE)
    large, small = buffers.take("some", 4, 5), buffers.take("some", 2, 3)
    assert small.data_ptr() == large.data_ptr() == buffers.take("some", 4, 5).data_ptr()
    assert buffers.take("others", 4, 5).data_ptr() != large.data_ptr()
    assert buffers.take("some", 5, 5).shape == (5, 5)
