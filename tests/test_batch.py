# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headkv_vllm.block_row import BlockRow, head_blocks
from headkv_vllm.budgets.registry import POLICIES
from tests.steps import Step, steps


def places(indices, num_places):
    return list(range(num_places))[indices] if isinstance(indices, slice) else indices.tolist()


def block_of(step, request, position):
    return step.rows[request].blocks[position // step.block_size]


@settings(deadline=None)
@given(steps())
def test_each_token_is_written_to_its_own_slot(step):
    expected = [
        block_of(step, request, position) * step.block_size + position % step.block_size
        for request, position in step.tokens
    ]
    assert step.plan().slot_mapping.tolist() == expected


@settings(deadline=None)
@given(steps())
def test_each_token_is_whole_or_by_head_exactly_once(step):
    batch = step.plan()
    num_tokens, num_kv_heads = len(step.tokens), step.scores.shape[1]
    seen = torch.zeros(num_tokens, num_kv_heads, dtype=torch.int64)
    if batch.whole is not None:
        seen[batch.whole.tokens] += 1
    if batch.by_head is not None:
        seen.view(-1)[batch.by_head.rows] += 1
    assert (seen == 1).all()


@settings(deadline=None)
@given(steps())
def test_whole_tokens_attend_their_requests_blocks_up_to_themselves(step):
    whole = step.plan().whole
    expected = [index for index, token in enumerate(step.tokens) if not step.is_by_head(*token)]
    if whole is None:
        assert not expected
        return
    assert places(whole.tokens, len(step.tokens)) == expected
    assert isinstance(whole.tokens, slice) == (expected[-1] - expected[0] < len(expected))
    starts = whole.query_start_loc.tolist()
    assert starts[0] == 0 and starts[-1] == len(expected)
    for sequence, (begin, end) in enumerate(pairwise(starts)):
        tokens = [step.tokens[index] for index in expected[begin:end]]
        ((request, *others),) = [list({request for request, _ in tokens})]
        last = tokens[-1][1]
        assert not others and int(whole.seq_lens[sequence]) == last + 1
        num_blocks = last // step.block_size + 1
        table = whole.block_table[sequence, :num_blocks].tolist()
        assert table == list(step.rows[request].blocks[:num_blocks])


@settings(deadline=None)
@given(steps())
def test_tokens_by_head_come_in_the_order_of_requests_heads_and_tokens(step):
    by_head = step.plan().by_head
    num_kv_heads = step.scores.shape[1]
    expected, lengths = [], []
    for request in range(len(step.rows)):
        own = [
            index
            for index, (other, position) in enumerate(step.tokens)
            if other == request and step.is_by_head(request, position)
        ]
        for head in range(num_kv_heads if own else 0):
            expected += [index * num_kv_heads + head for index in own]
            lengths.append(len(own))
    if by_head is None:
        assert not expected
        return
    assert places(by_head.rows, len(step.tokens) * num_kv_heads) == expected
    assert by_head.query_start_loc.tolist() == [0, *np.cumsum(lengths).tolist()]


@settings(deadline=None)
@given(steps(kinds=("decode", "drafts")))
def test_decoding_one_token_of_compressed_requests_side_by_side_copies_no_rows(step):
    by_head = step.plan().by_head
    compressed = [index for index, row in enumerate(step.rows) if row.compressed_blocks]
    if not compressed or int(step.query_lens.max()) > 1:
        return
    is_side_by_side = compressed[-1] - compressed[0] < len(compressed)
    assert isinstance(by_head.rows, slice) == is_side_by_side or step.scores.shape[1] == 1


@settings(deadline=None)
@given(steps())
def test_heads_attend_what_they_were_dealt_and_then_the_tail(step):
    by_head = step.plan().by_head
    if by_head is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = sorted({r for r, position in step.tokens if step.is_by_head(r, position)})
    for sequence, request in enumerate(requests):
        dealt, row = step.num_head_blocks(request), step.rows[request]
        num_full = step.budget(request).num_full_blocks
        tail = [(block * num_layers) for block in row.blocks[num_full:]]
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                own = head_blocks(row.compressed_blocks, dealt, layer, head)
                own += [(first + layer) * num_kv_heads + head for first in tail]
                index = sequence * num_kv_heads + head
                assert by_head.block_tables[layer][index, : len(own)].tolist() == own
                length = int(by_head.seq_lens[layer][index])
                kept = int(dealt[layer, head]) * step.block_size
                assert length == kept + step.ends[request] - num_full * step.block_size
                assert -(-length // step.block_size) == len(own)


@settings(deadline=None)
@given(steps(kinds=("last", "resumed", "prefill")))
def test_a_completed_prompt_is_compressed_into_the_blocks_that_are_read_later(step):
    compressions = {c.window_start: c for c in step.plan().compressions}
    for request, row in enumerate(step.rows):
        length = row.num_prompt_tokens
        if (request, length - 1) not in step.tokens or not row.compressed_blocks:
            continue
        window_start = step.tokens.index((request, length - step.window))
        compression = compressions.pop(window_start)
        budget, dealt = step.budget(request), step.num_head_blocks(request)
        assert compression.num_prompt_tokens == length
        assert compression.num_candidates == budget.num_full_blocks * step.block_size
        num_blocks = -(-length // step.block_size)
        assert compression.blocks.tolist() == list(row.blocks[:num_blocks])
        assert compression.compressed_blocks == row.compressed_blocks
        assert compression.policy is POLICIES[step.policy(request)]
        assert torch.equal(compression.num_head_blocks, dealt)
        assert (dealt * step.block_size <= compression.num_candidates).all()
        for layer, slots in enumerate(compression.slots):
            expected = [
                head_block * step.block_size + offset
                for head in range(step.scores.shape[1])
                for head_block in head_blocks(row.compressed_blocks, dealt, layer, head)
                for offset in range(step.block_size)
            ]
            assert slots.tolist() == expected
    assert not compressions


@settings(deadline=None)
@given(steps(kinds=("decode",)))
def test_every_head_block_of_the_compressed_blocks_is_dealt_to_one_head_of_one_request(step):
    by_head = step.plan().by_head
    if by_head is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = [r for r, row in enumerate(step.rows) if row.compressed_blocks]
    reached = []
    for sequence, request in enumerate(requests):
        dealt = step.num_head_blocks(request)
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                table = by_head.block_tables[layer][sequence * num_kv_heads + head]
                reached += table[: int(dealt[layer, head])].tolist()
    heads_per_block = num_layers * num_kv_heads
    compressed = [block for row in step.rows for block in row.compressed_blocks]
    expected = [b * heads_per_block + i for b in compressed for i in range(heads_per_block)]
    assert sorted(reached) == sorted(expected)


def test_no_step_goes_on_after_a_prompt_that_it_compresses():
    row = BlockRow(40, (50,), (51, 52, 53), 0)
    batch = Step((row,), (20,), (40,), np.ones((2, 2)), 16, 8, 0).plan()
    assert batch.whole.tokens == slice(0, 20) and batch.by_head is None
    assert [c.window_start for c in batch.compressions] == [12]
    with pytest.raises(AssertionError, match="goes on after a prompt"):
        Step((row,), (20,), (43,), np.ones((2, 2)), 16, 8, 0).plan()
