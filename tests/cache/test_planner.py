# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.kernels.reference import allocated_head_blocks
from tests.cache.steps import Step, steps


def listed(indices, length):
    return list(range(length))[indices] if isinstance(indices, slice) else indices.tolist()


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
def test_each_token_is_dense_or_compressed_exactly_once(step):
    batch = step.plan()
    num_tokens, num_kv_heads = len(step.tokens), step.scores.shape[1]
    seen = torch.zeros(num_tokens, num_kv_heads, dtype=torch.int64)
    if batch.dense is not None:
        seen[batch.dense.tokens] += 1
    if batch.compressed is not None:
        seen.view(-1)[batch.compressed.indices] += 1
    assert (seen == 1).all()


@settings(deadline=None)
@given(steps())
def test_dense_tokens_attend_their_requests_blocks_up_to_themselves(step):
    dense = step.plan().dense
    expected = [index for index, token in enumerate(step.tokens) if not step.is_compressed(*token)]
    if dense is None:
        assert not expected
        return
    assert listed(dense.tokens, len(step.tokens)) == expected
    assert isinstance(dense.tokens, slice) == (expected[-1] - expected[0] < len(expected))
    starts = dense.query_start_loc.tolist()
    assert starts[0] == 0 and starts[-1] == len(expected)
    for sequence, (begin, end) in enumerate(pairwise(starts)):
        tokens = [step.tokens[index] for index in expected[begin:end]]
        ((request, *others),) = [list({request for request, _ in tokens})]
        last = tokens[-1][1]
        assert not others and int(dense.seq_lens[sequence]) == last + 1
        num_blocks = last // step.block_size + 1
        table = dense.block_table[sequence, :num_blocks].tolist()
        assert table == list(step.rows[request].blocks[:num_blocks])


@settings(deadline=None)
@given(steps())
def test_compressed_tokens_are_ordered_by_request_head_and_token(step):
    compressed = step.plan().compressed
    num_kv_heads = step.scores.shape[1]
    expected, lengths = [], []
    for request in range(len(step.rows)):
        own = [
            index
            for index, (other, position) in enumerate(step.tokens)
            if other == request and step.is_compressed(request, position)
        ]
        for head in range(num_kv_heads if own else 0):
            expected += [index * num_kv_heads + head for index in own]
            lengths.append(len(own))
    if compressed is None:
        assert not expected
        return
    assert listed(compressed.indices, len(step.tokens) * num_kv_heads) == expected
    assert compressed.query_start_loc.tolist() == [0, *np.cumsum(lengths).tolist()]


@settings(deadline=None)
@given(steps(kinds=("decode", "drafts")))
def test_decoding_one_token_of_consecutive_compressed_requests_needs_no_copy(step):
    compressed = step.plan().compressed
    requests = [index for index, row in enumerate(step.rows) if row.compressed_blocks]
    if not requests or int(step.query_lens.max()) > 1:
        return
    is_side_by_side = requests[-1] - requests[0] < len(requests)
    assert isinstance(compressed.indices, slice) == is_side_by_side or step.scores.shape[1] == 1


@settings(deadline=None)
@given(steps())
def test_heads_attend_their_kept_entries_and_then_the_tail(step):
    compressed = step.plan().compressed
    if compressed is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = sorted({r for r, position in step.tokens if step.is_compressed(r, position)})
    for sequence, request in enumerate(requests):
        kept_blocks, row = step.num_head_blocks(request), step.rows[request]
        num_full = step.budget(request).num_full_blocks
        tail = [(block * num_layers) for block in row.blocks[num_full:]]
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                own = allocated_head_blocks(row.compressed_blocks, kept_blocks, layer, head)
                own += [(first + layer) * num_kv_heads + head for first in tail]
                index = sequence * num_kv_heads + head
                assert compressed.block_tables[layer][index, : len(own)].tolist() == own
                length = int(compressed.seq_lens[layer][index])
                kept = int(kept_blocks[layer, head]) * step.block_size
                assert length == kept + step.ends[request] - num_full * step.block_size
                assert -(-length // step.block_size) == len(own)


@settings(deadline=None)
@given(steps(kinds=("last", "resumed", "prefill")))
def test_a_completed_prompt_is_compressed_into_its_own_blocks(step):
    compressions = {c.window_start: c for c in step.plan().compressions}
    for request, row in enumerate(step.rows):
        length = row.num_prompt_tokens
        if (request, length - 1) not in step.tokens or not row.compressed_blocks:
            continue
        window_start = step.tokens.index((request, length - step.window))
        compression = compressions.pop(window_start)
        budget, kept_blocks = step.budget(request), step.num_head_blocks(request)
        assert compression.num_prompt_tokens == length
        assert compression.num_full_blocks == budget.num_full_blocks
        num_blocks = -(-length // step.block_size)
        assert compression.blocks.tolist() == list(row.blocks[:num_blocks])
        assert compression.compressed_blocks.tolist() == list(row.compressed_blocks)
        assert compression.policy is POLICIES[step.policy(request)]
        assert np.array_equal(compression.allocation, kept_blocks)
    assert not compressions


@settings(deadline=None)
@given(steps(kinds=("decode",)))
def test_every_head_block_of_the_compressed_blocks_belongs_to_one_head_of_one_request(step):
    compressed = step.plan().compressed
    if compressed is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = [r for r, row in enumerate(step.rows) if row.compressed_blocks]
    reached = []
    for sequence, request in enumerate(requests):
        kept_blocks = step.num_head_blocks(request)
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                table = compressed.block_tables[layer][sequence * num_kv_heads + head]
                reached += table[: int(kept_blocks[layer, head])].tolist()
    heads_per_block = num_layers * num_kv_heads
    blocks = [block for row in step.rows for block in row.compressed_blocks]
    expected = [b * heads_per_block + i for b in blocks for i in range(heads_per_block)]
    assert sorted(reached) == sorted(expected)


def test_a_chunk_that_goes_beyond_a_compressed_prompt_fails_an_assertion():
    row = BlockRow(40, (50,), (51, 52, 53), 0)
    batch = Step((row,), (20,), (40,), np.ones((2, 2)), 16, 8, 0).plan()
    assert batch.dense.tokens == slice(0, 20) and batch.compressed is None
    assert [c.window_start for c in batch.compressions] == [12]
    with pytest.raises(AssertionError, match="a chunk ends with a prompt"):
        Step((row,), (20,), (43,), np.ones((2, 2)), 16, 8, 0).plan()
