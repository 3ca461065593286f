# SPDX-License-Identifier: Apache-2.0
"""What is read off rows on the device: as its plain twins have it, and as the CPU backend does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headkv_vllm.block_row import slot_mapping
from headkv_vllm.budgets.allotment import integer_weights
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.kernels.allotment import (
    HeadWeights,
    Sizes,
    first_head_blocks,
    first_head_blocks_plain,
)
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunks import num_completed, num_completed_plain
from headkv_vllm.kernels.prompt_tables import prompt_tables, prompt_tables_plain
from headkv_vllm.kernels.rows import (
    DeviceRows,
    DeviceTokens,
    attended_head_blocks,
    attended_tokens,
)
from headkv_vllm.kernels.step_tokens import step_tokens, step_tokens_plain
from headkv_vllm.kernels.work_list import PIECE, work_list, work_list_plain
from tests.kernels.device_steps import (
    DEVICE,
    chunks_of,
    device_rows,
    device_tokens,
    nothing_decided,
    token_arguments,
)
from tests.steps import ADAPTIVE, steps

pytest.importorskip("triton")
FEW = settings(max_examples=40)
BUFFERS = Buffers(DEVICE)
"""Of all tests: none may count on what it finds in them."""


def integers(*values):
    """As int32 on the device."""
    return [torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in values]


def weights_of(scores: np.ndarray, window: int) -> HeadWeights:
    """Of all policies, at a K of 1: they are in proportion to it."""
    asked = Settings(budget=1024, window=window)
    shares = [policy.shares(scores, 1, 2, asked).ravel() for policy in POLICIES.values()]
    return HeadWeights.of(np.stack(shares), DEVICE)


class TestAllotment:
    @FEW
    @given(steps())
    def test_as_the_plain_twin_and_the_cpu_backend(self, step):
        first = self.dealt(step, nothing_decided(step.scores.size))
        assert torch.equal(first.cpu(), device_rows(step).first.cpu())

    @FEW
    @given(steps(kinds=("prefill", "last"), policies=ADAPTIVE))
    def test_a_prompt_that_has_yet_to_decide_spreads_what_each_layer_has(self, step):
        first = self.dealt(step, nothing_decided(step.scores.size))
        assert torch.equal(first.cpu(), device_rows(step).first.cpu())

    @FEW
    @given(steps(kinds=("decode", "drafts"), policies=list(POLICIES)))
    def test_a_prompt_that_has_decided_has_what_it_wrote(self, step):
        decided = nothing_decided(step.scores.size)
        for number, row in enumerate(step.rows):
            if row.compressed_blocks:
                counts = torch.arange(step.scores.size) + number
                decided.counts[row.compressed_blocks[0]] = counts.int().to(DEVICE)
        first = self.dealt(step, decided).cpu()
        for number, row in enumerate(step.rows):
            if row.compressed_blocks and POLICIES[step.policy(number)].adaptive:
                assert first[number].diff().tolist() == [
                    number + head for head in range(step.scores.size)
                ]

    def dealt(self, step, decided):
        sizes = Sizes(step.scores.shape[1], step.window, step.block_size, 1)
        locations = (step.query_start_loc.to(DEVICE), step.seq_lens.to(DEVICE))
        weights, rows = weights_of(step.scores, step.window), step.block_table.to(DEVICE)
        arguments = (rows, *locations, weights, decided, sizes, BUFFERS)
        first = first_head_blocks(*arguments)
        assert torch.equal(first, first_head_blocks_plain(*arguments))
        return first

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
        row = [most * 16 + 8, num_blocks, 0, 5]
        rows, starts, ends = integers([row], [0, 1], [most * 16 + 9])
        weights, sizes = HeadWeights.of(shares[None], DEVICE), Sizes(1, 8, 16, fewest)
        arguments = (rows, starts, ends, weights, nothing_decided(num_heads), sizes, BUFFERS)
        first = first_head_blocks(*arguments)
        assert torch.equal(first, first_head_blocks_plain(*arguments))
        assert int(first[0, -1]) == num_blocks * num_heads

    def test_every_policy_shares_in_proportion_to_what_there_is(self):
        """So that one table of weights does for all prompts."""
        scores = np.random.default_rng(0).random((4, 8)) ** 4
        asked = Settings(budget=1024)
        for policy in POLICIES.values():
            few, many = (policy.shares(scores, k, 9000, asked).ravel() for k in (1, 8191))
            assert np.array_equal(integer_weights(few), integer_weights(many))

    def test_rows_that_fill_a_batch_up_have_nothing(self):
        rows, starts, ends = integers([[0] * 9] * 2, [0, 0, 0], [0, 0])
        weights, sizes = weights_of(np.ones((2, 3)), 8), Sizes(3, 8, 16, 1)
        step = (rows, starts, ends, weights, nothing_decided(6), sizes, BUFFERS)
        assert not first_head_blocks(*step).any()


@FEW
@given(steps(kinds=("prefill", "last", "resumed", "drafts")))
def test_prompts_that_are_completed_are_counted(step):
    rows, chunks = device_rows(step), chunks_of(step)
    assert num_completed(rows, chunks) == num_completed_plain(rows, chunks)


class TestPromptTables:
    @FEW
    @given(steps(kinds=("prefill", "last", "resumed", "drafts")), st.integers(0, 20), st.data())
    def test_as_the_plain_twin(self, step, more_tokens, data):
        chunks = chunks_of(step, more_tokens)
        named = data.draw(st.sets(st.sampled_from(range(len(step.rows))), min_size=1))
        chunks = replace(chunks, requests=chunks.requests[sorted(named)])
        made = prompt_tables(device_rows(step), chunks)
        plain = prompt_tables_plain(device_rows(step), chunks)
        assert torch.equal(made.seq_lens, plain.seq_lens)
        assert torch.equal(made.block_table, plain.block_table)
        for request, row in enumerate(step.rows):
            by_head = step.is_by_head(request, step.starts[request])
            is_read = request in named and not by_head
            assert int(made.seq_lens[request]) == (step.ends[request] if is_read else 1)
            if is_read:
                assert made.block_table[request, : len(row.blocks)].tolist() == list(row.blocks)


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
        rows, starts, ends = integers([[700, 0, 0, *range(5, 50)]], [0, 600], [650])
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


def test_a_step_longer_than_what_was_reserved_moves_nothing():
    """For a graph goes on reading where it was captured."""
    buffers = Buffers(DEVICE)
    reserved = buffers.take("some", 4, 5)
    longer = buffers.take("some", 5, 5)
    assert longer.shape == (5, 5) and longer.data_ptr() != reserved.data_ptr()
    assert buffers.take("some", 4, 5).data_ptr() == reserved.data_ptr()
