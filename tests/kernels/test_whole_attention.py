# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.kernels.stored_entries import store_entries, store_entries_plain
from headkv_vllm.kernels.whole_attention import attend_whole, attend_whole_plain
from tests.kernels.device_steps import (
    DEVICE,
    device_rows,
    layer_inputs,
    one_step,
    prompts_of,
    some_queries,
)
from tests.steps import steps

pytest.importorskip("triton")
FEW = settings(max_examples=30)
whole_steps = steps(kinds=("prefill", "last", "last"))


def attended(attend, query, rows, prompts, inputs):
    output = torch.full_like(query, 7.0)
    attend(query, rows, prompts, inputs, output)
    return output


@FEW
@given(
    whole_steps,
    st.sampled_from([1, 2, 5]),
    st.sampled_from([16, 24]),
    st.sampled_from([0.0, 5.0]),
    st.data(),
)
def test_attention_as_the_plain_twin(step, group_size, head_size, soft_cap, data):
    rows, prompts = device_rows(step), prompts_of(step, data.draw(st.integers(0, 20)))
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    inputs = layer_inputs(step, layer, head_size, torch.float32, soft_cap)
    query = some_queries(len(step.tokens), rows.num_kv_heads * group_size, head_size)
    made, plain = (
        attended(f, query, rows, prompts, inputs) for f in (attend_whole, attend_whole_plain)
    )
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)


def test_only_the_prompts_that_are_named_are_written():
    step = one_step()
    rows, prompts, inputs = (
        device_rows(step),
        prompts_of(step),
        layer_inputs(step, 0, 16, torch.float32),
    )
    query = some_queries(2, 6, 16)
    one = type(prompts)(prompts.requests[1:], *list(vars(prompts).values())[1:])
    made = attended(attend_whole, query, rows, one, inputs)
    assert (made[0] == 7.0).all() and (made[1] != 7.0).any()


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, 0), (torch.bfloat16, 2**-7), (torch.float8_e4m3fn, 1 / 8)],
)
@settings(max_examples=12)
@given(step=whole_steps, layer=st.integers(0, 2))
def test_entries_are_stored_where_attention_reads_them(dtype, rounding, step, layer):
    rows = device_rows(step)
    inputs = layer_inputs(step, layer % rows.num_layers, 24, dtype)
    by_twin = type(inputs)(**{**vars(inputs), "head_blocks": inputs.head_blocks.clone()})
    num_tokens = len(step.tokens)
    key, value = some_queries(num_tokens, 2 * rows.num_kv_heads, 24).split(rows.num_kv_heads, 1)
    slots = torch.from_numpy(step.plan().slot_mapping.numpy().copy()).to(DEVICE)
    slots[-1] = -1
    store_entries(key, value, slots, rows, inputs)
    store_entries_plain(key, value, slots, rows, by_twin)
    made, plain = (i.head_blocks.float() for i in (inputs, by_twin))
    # Where a GPU rounds, Triton's interpreter cuts off.
    torch.testing.assert_close(made, plain, rtol=rounding, atol=rounding / 32)
