# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.kernels.reference import allocated_head_blocks
from tests.cache.steps import EVERY_STEP, Step, steps


def listed(indices, length):
    return list(range(length))[indices] if isinstance(indices, slice) else indices.tolist()


def block_of(step, request, position):
    return step.rows[request].blocks[position // step.block_size]


@settings(deadline=None)
@given(EVERY_STEP)
def test_each_token_is_written_to_its_own_slot(step):
    expected = [
        block_of(step, request, position) * step.block_size + position % step.block_size
        for request, position in step.tokens
    ]
    assert step.plan().slot_mapping.tolist() == expected


@settings(deadline=None)
@given(EVERY_STEP)
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
@given(EVERY_STEP)
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
@given(EVERY_STEP)
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
    requests = [index for index, row in enumerate(step.rows) if row.private_blocks]
    if not requests or int(step.query_lens.max()) > 1:
        return
    is_side_by_side = requests[-1] - requests[0] < len(requests)
    assert isinstance(compressed.indices, slice) == is_side_by_side or step.scores.shape[1] == 1


@settings(deadline=None)
@given(EVERY_STEP)
def test_heads_attend_their_kept_entries_and_then_the_tail(step):
    compressed = step.plan().compressed
    if compressed is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = sorted({r for r, position in step.tokens if step.is_compressed(r, position)})
    for sequence, request in enumerate(requests):
        kept_blocks, row = step.num_head_blocks(request), step.rows[request]
        num_full = step.num_replaced(request)
        tail = [(block * num_layers) for block in row.blocks[num_full:]]
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                own = allocated_head_blocks(
                    step.compressed_blocks(request), kept_blocks, layer, head
                )
                own += [(first + layer) * num_kv_heads + head for first in tail]
                index = sequence * num_kv_heads + head
                assert compressed.block_tables[layer][index, : len(own)].tolist() == own
                length = int(compressed.seq_lens[layer][index])
                kept = int(kept_blocks[layer, head]) * step.block_size
                assert length == kept + step.ends[request] - num_full * step.block_size
                assert -(-length // step.block_size) == len(own)


@settings(deadline=None)
@given(steps(kinds=("last", "resumed", "prefill"), intervals=(0, 0, 1)))
def test_a_completed_prompt_is_compressed_into_its_own_blocks(step):
    batch = step.plan()
    compressions = dict(zip(batch.window_starts, batch.completed_prompts, strict=True))
    for request, row in enumerate(step.rows):
        length = row.num_prompt_tokens
        is_complete = (request, length - 1) in step.tokens
        if not is_complete or not row.private_blocks or step.first_point(request) != length:
            continue
        window_start = step.tokens.index((request, length - step.window))
        compression = compressions.pop(window_start)
        assert compression.is_first and compression.num_tokens == length
        check_compression(step, request, compression)
        num_blocks = -(-length // step.block_size)
        assert compression.blocks.tolist() == list(row.blocks[:num_blocks])
    assert not compressions


def check_compression(step, request, compression):
    """What is the same for prompts and for generated tokens."""
    num_full = (compression.num_tokens - step.window) // step.block_size
    assert compression.num_full_blocks == num_full
    assert compression.compressed_blocks.tolist() == list(step.compressed_blocks(request))
    assert compression.policy is POLICIES[step.policy(request)]
    assert np.array_equal(compression.allocation, step.num_head_blocks(request))


@settings(deadline=None)
@given(steps(kinds=("decode", "drafts", "last"), intervals=(1, 2)))
def test_a_request_is_compressed_again_when_a_step_begins_at_a_point(step):
    found = []
    step.plan_by(step.planner(compress_again=lambda *which: found.append(which)))
    for request, row in enumerate(step.rows):
        start = step.starts[request]
        points = step.points_below(request, start + 1)
        if not points:
            continue
        *earlier, last = points
        is_by_prompt = start == row.num_prompt_tokens == step.first_point(request)
        if not row.interval or start != last or is_by_prompt:
            continue
        compression, query_blocks = found.pop(0)
        assert compression.num_tokens == start
        assert compression.is_first == (not earlier)
        replaced = (earlier[-1] - step.window) // step.block_size if earlier else 0
        assert compression.num_replaced_blocks == replaced
        num_blocks = -(-start // step.block_size)
        assert compression.blocks.tolist() == list(row.blocks[replaced:num_blocks])
        assert query_blocks.tolist() == list(row.private_blocks[-1:])
        check_compression(step, request, compression)
    assert not found


def test_a_prompt_that_its_last_step_compressed_is_not_compressed_again_at_once():
    row, found = BlockRow(100, (3, 4, 5), tuple(range(10, 18)), 0, 1), []
    step = Step((row,), (100,), (101,), np.ones((2, 2)), 16, 8, 0)
    assert step.first_point(0) == 100  # 2 * 2 * 16 + 8 tokens are fewer
    step.plan_by(step.planner(compress_again=lambda *which: found.append(which)))
    assert not found


@settings(deadline=None)
@given(EVERY_STEP)
def test_the_queries_of_later_compressions_wait_in_order(step):
    """Each has its place: the block of its request, and its index in the window."""
    waiting, expected = step.plan().waiting, {}
    for index, (request, position) in enumerate(step.tokens):
        row = step.rows[request]
        if not row.interval:
            continue
        point = step.first_point(request)
        while point < position + 1:
            point += row.interval * step.block_size
        is_by_prompt = point == row.num_prompt_tokens == step.first_point(request)
        if not is_by_prompt and position >= point - step.window:
            place = row.private_blocks[-1] * step.window + position - (point - step.window)
            expected[index] = place
    found = {}
    if waiting is not None:
        tokens = listed(waiting.tokens, len(step.tokens))
        found = dict(zip(tokens, waiting.places.tolist(), strict=True))
    assert found == expected


@settings(deadline=None)
@given(steps(kinds=("decode",)))
def test_every_head_block_of_the_compressed_blocks_belongs_to_one_head_of_one_request(step):
    compressed = step.plan().compressed
    if compressed is None:
        return
    num_layers, num_kv_heads = step.scores.shape
    requests = [r for r, row in enumerate(step.rows) if row.private_blocks]
    reached = []
    for sequence, request in enumerate(requests):
        kept_blocks = step.num_head_blocks(request)
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                table = compressed.block_tables[layer][sequence * num_kv_heads + head]
                reached += table[: int(kept_blocks[layer, head])].tolist()
    heads_per_block = num_layers * num_kv_heads
    blocks = [block for row in step.rows for block in row.private_blocks]
    expected = [b * heads_per_block + i for b in blocks for i in range(heads_per_block)]
    assert sorted(reached) == sorted(expected)


def test_a_chunk_that_goes_beyond_a_compressed_prompt_fails_an_assertion():
    row = BlockRow(40, (50,), (51, 52, 53), 0)
    batch = Step((row,), (20,), (40,), np.ones((2, 2)), 16, 8, 0).plan()
    assert batch.dense.tokens == slice(0, 20) and batch.compressed is None
    assert batch.window_starts == (12,)
    with pytest.raises(AssertionError, match="a chunk ends with a prompt"):
        Step((row,), (20,), (43,), np.ones((2, 2)), 16, 8, 0).plan()
