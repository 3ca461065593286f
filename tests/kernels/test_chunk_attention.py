# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.kernels import reference
from headkv_vllm.kernels.cache_writes import reshape_and_cache
from headkv_vllm.kernels.chunk_attention import attend_chunks
from tests.cache.steps import steps
from tests.kernels.device_steps import (
    DEVICE,
    chunks_of,
    device_rows,
    layer_inputs,
    one_step,
    some_queries,
)

pytest.importorskip("triton")
FEW = settings(max_examples=30)
some_steps = steps(kinds=("prefill", "last", "drafts", "decode"))


def attended(attend, query, rows, chunks, inputs):
    output = torch.full_like(query, 7.0)
    attend(query, rows, chunks, inputs, output)
    return output


@FEW
@given(
    some_steps,
    st.sampled_from([1, 2, 5]),
    st.sampled_from([16, 24]),
    st.sampled_from([0.0, 5.0]),
    st.data(),
)
def test_attention_as_the_reference(step, group_size, head_size, soft_cap, data):
    rows, chunks = device_rows(step), chunks_of(step, data.draw(st.integers(0, 20)))
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    inputs = layer_inputs(step, layer, head_size, torch.float32, soft_cap)
    query = some_queries(len(step.tokens), rows.num_kv_heads * group_size, head_size)
    made, plain = (
        attended(f, query, rows, chunks, inputs) for f in (attend_chunks, reference.attend_chunks)
    )
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)


@FEW
@given(some_steps)
def test_only_by_head(step):
    """What attends all positions is left to another kernel."""
    rows, chunks = device_rows(step), chunks_of(step)
    inputs = layer_inputs(step, 0, 16, torch.float32)
    query = some_queries(len(step.tokens), rows.num_kv_heads, 16)
    made, plain = (
        attended(partial(f, only_by_head=True), query, rows, chunks, inputs)
        for f in (attend_chunks, reference.attend_chunks)
    )
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    compressed = [step.is_compressed(*token) for token in step.tokens]
    assert (made != 7.0).flatten(1).any(1).tolist() == compressed


def test_only_the_prompts_that_are_named_are_written():
    step = one_step()
    rows, chunks, inputs = (
        device_rows(step),
        chunks_of(step),
        layer_inputs(step, 0, 16, torch.float32),
    )
    query = some_queries(2, 6, 16)
    one = replace(chunks, requests=chunks.requests[1:])
    made = attended(attend_chunks, query, rows, one, inputs)
    assert (made[0] == 7.0).all() and (made[1] != 7.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@settings(max_examples=12)
@given(step=some_steps, layer=st.integers(0, 2))
def test_entries_are_stored_where_attention_reads_them(dtype, step, layer):
    rows = device_rows(step)
    inputs = layer_inputs(step, layer % rows.num_layers, 24, dtype)
    by_reference = replace(inputs, head_blocks=inputs.head_blocks.clone())
    # Numbers that need no rounding, which Triton's interpreter does in its own way.
    both = some_queries(len(step.tokens), 2 * rows.num_kv_heads, 24).mul(3).round()
    key, value = both.split(rows.num_kv_heads, 1)
    slots = step.plan().slot_mapping.clone().to(DEVICE)
    slots[-1] = -1
    reshape_and_cache(key, value, slots, rows, inputs)
    reference.reshape_and_cache(key, value, slots, rows, by_reference)
    made, plain = (i.head_blocks.view(torch.uint8) for i in (inputs, by_reference))
    assert torch.equal(made, plain)
