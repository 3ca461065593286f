# SPDX-License-Identifier: Apache-2.0
"""Reading what vLLM's own CPU kernels wrote."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.head_block_tables import head_block_tables, head_seq_lens
from headkv_vllm.engine.attention.backend import flat_head_blocks
from headkv_vllm.engine.attention.cpu_cache import PACKINGS, PackedCache, PackedHeadBlocks

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU build", allow_module_level=True)
current_platform.import_kernels()

NUM_LAYERS, NUM_BLOCKS, NUM_KV_HEADS = 3, 6, 2
CASES = [
    pytest.param(isa, dtype, block_size, head_size, id=f"{isa}-{name}-{block_size}x{head_size}")
    for isa, block_size, head_size in (
        ("vec", 32, 32),
        ("vec", 64, 128),
        ("vec16", 16, 64),
        ("vec16", 48, 80),
        ("amx", 32, 64),
        ("amx", 64, 128),
    )
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    if isa != "amx" or dtype == torch.bfloat16
]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Cache:
    """A cache that stores blocks outermost, as vLLM's BLHNC layout, all of it written.

    key, value: [NUM_BLOCKS * L * H, block_size, head_size], by head block.
    """

    def __init__(self, isa, dtype, block_size, head_size, generator):
        shape = (NUM_BLOCKS, NUM_LAYERS, NUM_KV_HEADS, block_size, 2 * head_size)
        layers = torch.zeros(shape, dtype=dtype).unbind(1)
        by_head = (NUM_BLOCKS, NUM_LAYERS, NUM_KV_HEADS, block_size, head_size)
        key, value = torch.randn(2, *by_head, generator=generator).to(dtype)
        for index, layer in enumerate(layers):
            own = (one[:, index].transpose(1, 2).flatten(0, 1) for one in (key, value))
            order = torch.randperm(NUM_BLOCKS * block_size, generator=generator)
            of_layer = [one[order] for one in own]
            try:
                PackedCache.from_kv_cache(layer, isa).write(*of_layer, order)
            except RuntimeError:
                if isa != "amx":
                    raise
                pytest.skip("vLLM's kernels for this CPU do not pack for AMX")
        self.key, self.value = key.flatten(0, 2), value.flatten(0, 2)
        flat = flat_head_blocks(layers[1], 1, NUM_LAYERS)
        self.head_blocks = PackedHeadBlocks(flat, NUM_LAYERS, NUM_KV_HEADS, isa)


def test_the_instruction_sets_tested_are_those_that_can_be_read():
    assert {case.values[0] for case in CASES} == set(PACKINGS)


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_head_blocks_are_read_as_the_kernels_wrote_them(
    isa, dtype, block_size, head_size, generator
):
    cache = Cache(isa, dtype, block_size, head_size, generator)
    table = torch.tensor([[17, 3, 30], [8, 4, 10]])
    expected = cache.key[table].flatten(1, 2).transpose(1, 2)
    assert torch.equal(cache.head_blocks.keys(table), expected)
    assert torch.equal(cache.head_blocks.values(table), cache.value[table].flatten(1, 2))


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_copied_entries_fill_head_blocks_one_after_the_other(
    isa, dtype, block_size, head_size, generator
):
    """One of the sources is a target, and is read before it is written."""
    cache = Cache(isa, dtype, block_size, head_size, generator)
    targets = torch.tensor([7, 29])
    sources = torch.randint(len(cache.key), (2 * block_size,), generator=generator)
    sources[-1] = 7
    offsets = torch.randint(block_size, (2 * block_size,), generator=generator)
    key, value = cache.key[sources, offsets], cache.value[sources, offsets]
    cache.head_blocks.copy(sources, offsets, targets)
    assert torch.equal(cache.head_blocks.keys(targets[None])[0], key.T)
    assert torch.equal(cache.head_blocks.values(targets[None])[0], value)
    others = torch.tensor([[i for i in range(len(cache.key)) if i not in targets]])
    assert torch.equal(cache.head_blocks.values(others)[0], cache.value[others[0]].flatten(0, 1))


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_heads_as_sequences_attend_what_each_keeps(isa, dtype, block_size, head_size, generator):
    """The real kernel over head-block tables is plain attention over each head's entries."""
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU has no AMX: it can pack for it, but not run its kernel")
    group_size, layer_index = 3, 1
    cache = Cache(isa, dtype, block_size, head_size, generator)
    # Two requests of K = 1 compressed block, F = 2 full ones and a tail of 1 and 2 blocks. The
    # numbers of the full blocks that were given up are those of the null block.
    rows = [BlockRow(0, (1,), (0, 0, 2), 0), BlockRow(0, (3,), (0, 0, 4, 5), 0)]
    width = max(len(row.entries()) for row in rows)
    table = [row.entries() + [0] * (width - len(row.entries())) for row in rows]
    kept = torch.tensor([[[1, 0], [3, 1], [0, 1]], [[0, 2], [1, 2], [1, 0]]], dtype=torch.int32)
    num_full = torch.tensor([2, 2], dtype=torch.int32)
    seq_lens = torch.tensor([3 * block_size - 3, 3 * block_size + 7], dtype=torch.int32)
    lengths = head_seq_lens(kept, num_full, seq_lens, block_size)[layer_index]
    tables = head_block_tables(
        torch.tensor(table, dtype=torch.int32), kept, num_full, seq_lens, block_size
    )[layer_index]
    num_tokens = torch.tensor([1, 2]).repeat_interleave(NUM_KV_HEADS)
    starts = torch.nn.functional.pad(num_tokens.cumsum(0), (1, 0)).int()
    query = torch.randn(int(starts[-1]), group_size, head_size, generator=generator).to(dtype)
    output = attend(query, cache, starts, lengths, tables, head_size**-0.5)
    expected = attend_plain(query, cache, starts, lengths, tables, head_size**-0.5)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
    # The same schedule serves all lengths that end in the same blocks.
    ends = -(-lengths // block_size) * block_size
    again = attend(query, cache, starts, lengths, tables, head_size**-0.5, scheduled=ends)
    assert torch.equal(again, output)


def attend(query, cache, starts, lengths, tables, scale, scheduled=None):
    """vLLM's kernel, as `HeadKVCpuImpl` calls it. scheduled: lengths for the schedule."""
    output = torch.full_like(query, float("nan"))
    packed = cache.head_blocks.packed
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=query.shape[1],
        num_kv_heads=1,
        head_dim=query.shape[2],
        seq_lens=lengths if scheduled is None else scheduled,
        dtype=query.dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=packed.isa,
        enable_kv_split=True,
    )
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=packed.key,
        value_cache=packed.value,
        output=output,
        query_start_loc=starts,
        seq_lens=lengths,
        scale=scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=tables,
        softcap=0.0,
        scheduler_metadata=schedule,
        s_aux=None,
    )
    return output


def attend_plain(query, cache, starts, lengths, tables, scale):
    """The same in float32, one sequence and one query at a time."""
    block_size = cache.key.shape[1]
    output = torch.empty(query.shape)
    for sequence, length in enumerate(lengths.tolist()):
        positions = torch.arange(length)
        places = (tables[sequence, positions // block_size].long(), positions % block_size)
        key, value = cache.key[places], cache.value[places]
        begin, end = starts[sequence : sequence + 2].tolist()
        for token in range(begin, end):
            visible = length - (end - 1 - token)
            logits = query[token].float() @ key[:visible].float().T * scale
            output[token] = logits.softmax(-1) @ value[:visible].float()
    return output


def test_plain_attention_is_the_formula():
    """The reference itself, against numbers worked out with numpy for one query."""
    generator = torch.Generator().manual_seed(1)
    cache = Cache("vec", torch.float32, 32, 32, generator)
    number = 2 * NUM_LAYERS * NUM_KV_HEADS
    query = torch.randn(1, 1, 32, generator=generator)
    lengths, starts = torch.tensor([5]), torch.tensor([0, 1])
    tables = torch.tensor([[number]], dtype=torch.int32)
    found = attend_plain(query, cache, starts, lengths, tables, scale=0.5)
    weights = np.exp(0.5 * cache.key[number, :5].numpy() @ query[0, 0].numpy())
    expected = weights / weights.sum() @ cache.value[number, :5].numpy()
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5, atol=1e-6)
