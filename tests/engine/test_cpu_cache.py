# SPDX-License-Identifier: Apache-2.0
"""Reading what vLLM's own CPU kernels wrote."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from headkv_vllm.block_row import BlockRow, head_block_tables, head_seq_lens
from headkv_vllm.engine.backends.cpu_cache import (
    PACKINGS,
    PagedCache,
    gather_entries,
    gather_keys,
    gather_values,
    split_key_value,
)
from headkv_vllm.engine.backends.flat_cache import flat_head_blocks

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


def cache_of_layers(block_size, head_size, dtype):
    """One view per layer of a cache that stores blocks outermost, as vLLM's BLHNC layout."""
    shape = (NUM_BLOCKS, NUM_LAYERS, NUM_KV_HEADS, block_size, 2 * head_size)
    return torch.zeros(shape, dtype=dtype).unbind(1)


def write(kv_cache, key, value, slots, isa):
    PagedCache(*split_key_value(kv_cache), isa).write(key, value, slots)


def filled(layers, layer_index, isa, generator):
    """Write random keys and values to every slot of a layer, in random order.

    Returns both, by slot: [NUM_BLOCKS * block_size, NUM_KV_HEADS, head_size].
    """
    layer = layers[layer_index]
    num_slots, head_size = NUM_BLOCKS * layer.shape[2], layer.shape[3] // 2
    key, value = (
        torch.randn(num_slots, NUM_KV_HEADS, head_size, generator=generator).to(layer.dtype)
        for _ in range(2)
    )
    order = torch.randperm(num_slots, generator=generator)
    write(layer, key[order], value[order], order, isa)
    return key, value


def test_the_instruction_sets_tested_are_those_that_can_be_read():
    assert {case.values[0] for case in CASES} == set(PACKINGS)


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_all_keys_of_some_blocks_are_read_as_written(isa, dtype, block_size, head_size, generator):
    layers = cache_of_layers(block_size, head_size, dtype)
    key, _ = filled(layers, 1, isa, generator)
    blocks = torch.tensor([4, 0, 5])
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
    keys = gather_keys(layers[1], blocks, isa)
    assert torch.equal(keys, key[slots].permute(1, 2, 0))
    assert not layers[0].any() and not layers[2].any()


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_all_values_of_some_blocks_are_read_as_written(
    isa, dtype, block_size, head_size, generator
):
    layers = cache_of_layers(block_size, head_size, dtype)
    _, value = filled(layers, 1, isa, generator)
    blocks = torch.tensor([4, 0, 5])
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
    assert torch.equal(gather_values(layers[1], blocks, isa), value[slots].transpose(0, 1))


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_single_entries_are_read_as_written(isa, dtype, block_size, head_size, generator):
    layers = cache_of_layers(block_size, head_size, dtype)
    key, value = filled(layers, 2, isa, generator)
    slots = torch.randperm(NUM_BLOCKS * block_size, generator=generator)
    heads = torch.randint(NUM_KV_HEADS, slots.shape, generator=generator)
    found = gather_entries(layers[2], slots // block_size, heads, slots % block_size, isa)
    assert torch.equal(found[0], key[slots, heads])
    assert torch.equal(found[1], value[slots, heads])


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_the_flat_array_holds_every_head_block_of_every_layer(
    isa, dtype, block_size, head_size, generator
):
    """Head block (b, l, h) is number (b*L + l)*H + h, read and written alike."""
    layers = cache_of_layers(block_size, head_size, dtype)
    key, _ = filled(layers, 1, isa, generator)
    flat = flat_head_blocks(layers[1], 1, NUM_LAYERS)
    assert flat.data_ptr() == layers[0].data_ptr()
    for block in range(NUM_BLOCKS):
        for head in range(NUM_KV_HEADS):
            number = torch.tensor([(block * NUM_LAYERS + 1) * NUM_KV_HEADS + head])
            own = key[block * block_size :][:block_size, head]
            assert torch.equal(gather_keys(flat, number, isa)[0], own.T)
    entry = torch.randn(1, 1, head_size, generator=generator).to(dtype)
    number = (3 * NUM_LAYERS + 2) * NUM_KV_HEADS + 1
    write(flat, entry, entry, torch.tensor([number * block_size + 5]), isa)
    where = (torch.tensor([3]), torch.tensor([1]), torch.tensor([5]))
    for found in gather_entries(layers[2], *where, isa):
        assert torch.equal(found, entry[0])


@pytest.mark.parametrize(("isa", "dtype", "block_size", "head_size"), CASES)
def test_heads_as_sequences_attend_what_each_was_dealt(
    isa, dtype, block_size, head_size, generator
):
    """The real kernel over head-block tables is plain attention over each head's entries."""
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU has no AMX: it can pack for it, but not run its kernel")
    group_size, layer_index = 3, 1
    layers = cache_of_layers(block_size, head_size, dtype)
    for index in range(NUM_LAYERS):
        filled(layers, index, isa, generator)
    flat = flat_head_blocks(layers[layer_index], layer_index, NUM_LAYERS)
    # Two requests of K = 1 compressed block, F = 2 full ones and a tail of 1 and 2 blocks. The
    # numbers of the full blocks that were given up are those of the null block.
    rows = [BlockRow(0, (1,), (0, 0, 2), 0), BlockRow(0, (3,), (0, 0, 4, 5), 0)]
    width = max(len(row.entries()) for row in rows)
    table = [row.entries() + [0] * (width - len(row.entries())) for row in rows]
    dealt = torch.tensor([[[1, 0], [3, 1], [0, 1]], [[0, 2], [1, 2], [1, 0]]], dtype=torch.int32)
    num_full = torch.tensor([2, 2], dtype=torch.int32)
    seq_lens = torch.tensor([3 * block_size - 3, 3 * block_size + 7], dtype=torch.int32)
    lengths = head_seq_lens(dealt, num_full, seq_lens, block_size)[layer_index]
    tables = head_block_tables(
        torch.tensor(table, dtype=torch.int32), dealt, num_full, seq_lens, block_size
    )[layer_index]
    num_tokens = torch.tensor([1, 2]).repeat_interleave(NUM_KV_HEADS)
    starts = torch.nn.functional.pad(num_tokens.cumsum(0), (1, 0)).int()
    query = torch.randn(int(starts[-1]), group_size, head_size, generator=generator).to(dtype)
    output = attend(query, flat, starts, lengths, tables, isa, scale=head_size**-0.5)
    expected = attend_plain(query, flat, starts, lengths, tables, isa, scale=head_size**-0.5)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
    # The same schedule does for all lengths that end in the same blocks.
    ends = -(-lengths // block_size) * block_size
    again = attend(query, flat, starts, lengths, tables, isa, head_size**-0.5, scheduled=ends)
    assert torch.equal(again, output)


def attend(query, flat, starts, lengths, tables, isa, scale, scheduled=None):
    """vLLM's kernel, as `HeadKVCpuImpl` calls it. scheduled: lengths for the schedule."""
    output = torch.full_like(query, float("nan"))
    key_cache, value_cache = split_key_value(flat)
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
        isa=isa,
        enable_kv_split=True,
    )
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
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


def attend_plain(query, flat, starts, lengths, tables, isa, scale):
    """The same in float32, one sequence and one query at a time."""
    block_size = flat.shape[2]
    output = torch.empty(query.shape)
    for sequence, length in enumerate(lengths.tolist()):
        positions = torch.arange(length)
        blocks = tables[sequence, positions // block_size].long()
        head = torch.zeros_like(positions)
        key, value = gather_entries(flat, blocks, head, positions % block_size, isa)
        begin, end = starts[sequence : sequence + 2].tolist()
        for token in range(begin, end):
            visible = length - (end - 1 - token)
            logits = query[token].float() @ key[:visible].float().T * scale
            output[token] = logits.softmax(-1) @ value[:visible].float()
    return output


def test_plain_attention_is_the_formula():
    """The twin itself, against numbers worked out with numpy for one query."""
    generator = torch.Generator().manual_seed(1)
    layers = cache_of_layers(32, 32, torch.float32)
    key, value = filled(layers, 0, "vec", generator)
    flat = flat_head_blocks(layers[0], 0, NUM_LAYERS)
    tables = torch.tensor([[2 * NUM_LAYERS * NUM_KV_HEADS]], dtype=torch.int32)
    query = torch.randn(1, 1, 32, generator=generator)
    lengths, starts = torch.tensor([5]), torch.tensor([0, 1])
    found = attend_plain(query, flat, starts, lengths, tables, "vec", scale=0.5)
    weights = np.exp(0.5 * key[64:69, 0].numpy() @ query[0, 0].numpy())
    expected = weights / weights.sum() @ value[64:69, 0].numpy()
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5, atol=1e-6)
