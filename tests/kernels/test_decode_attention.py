# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.kernels import reference
from headkv_vllm.kernels.decode_attention import attend_by_head
from headkv_vllm.kernels.inputs import Buffers
from headkv_vllm.kernels.kv_splits import kv_splits
from tests.cache.steps import steps
from tests.kernels.device_steps import (
    DEVICE,
    device_rows,
    device_tokens,
    layer_inputs,
    one_step,
    some_queries,
)

pytest.importorskip("triton")


def attended(attend, query, rows, tokens, inputs, num_splits):
    output = torch.full_like(query, 7.0)
    attend(
        query, rows, tokens, kv_splits(rows, tokens, num_splits, Buffers(DEVICE)), inputs, output
    )
    return output


@settings(max_examples=30)
@given(
    steps(kinds=("decode", "drafts")),
    st.sampled_from([1, 2, 3, 7]),
    st.sampled_from([16, 24, 64]),
    st.integers(1, 12),
    st.sampled_from([0.0, 5.0]),
    st.data(),
)
def test_as_the_reference(step, group_size, head_size, num_splits, soft_cap, data):
    """Heads of very different lengths, and any number of queries for each."""
    rows, tokens = device_rows(step), device_tokens(step, padding=data.draw(st.integers(0, 2)))
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    inputs = layer_inputs(step, layer, head_size, torch.float32, soft_cap)
    query = some_queries(len(tokens.ends), rows.num_kv_heads * group_size, head_size)
    arguments = (query, rows, tokens, inputs, num_splits)
    made, plain = (attended(f, *arguments) for f in (attend_by_head, reference.attend_by_head))
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    assert (made[tokens.ends == 0] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@settings(max_examples=8)
@given(step=steps(kinds=("decode",)))
def test_smaller_numbers(step, dtype):
    """Entries that are stored divided by a scale are multiplied by it."""
    rows, tokens = device_rows(step), device_tokens(step)
    inputs = layer_inputs(step, 0, 32, dtype)
    query = some_queries(len(tokens.ends), rows.num_kv_heads * 4, 32, torch.float16)
    arguments = (query, rows, tokens, inputs, 3)
    made, plain = (attended(f, *arguments) for f in (attend_by_head, reference.attend_by_head))
    torch.testing.assert_close(made, plain, rtol=1e-2, atol=1e-2)


def test_queries_that_are_part_of_a_wider_projection():
    step = one_step()
    rows, tokens = device_rows(step), device_tokens(step)
    inputs = layer_inputs(step, 0, 16, torch.float32)
    num_heads = rows.num_kv_heads * 2
    query = some_queries(len(tokens.ends), num_heads + 3, 16)[:, :num_heads]
    arguments = (query, rows, tokens, inputs, 4)
    made, plain = (attended(f, *arguments) for f in (attend_by_head, reference.attend_by_head))
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
