# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.kernels.head_attention import (
    LayerInputs,
    attend_by_head,
    attend_by_head_plain,
)
from headkv_vllm.kernels.work_list import work_list
from tests.kernels.device_steps import DEVICE, device_rows, device_tokens
from tests.steps import steps

pytest.importorskip("triton")
NUM_BLOCKS = 400


def layer_inputs(step, layer, head_size, dtype, soft_cap=0.0):
    num_head_blocks = NUM_BLOCKS * step.scores.size
    shape = (num_head_blocks, step.block_size, 2 * head_size)
    entries = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    ones = torch.ones(2, device=DEVICE)
    scales = (1.0, 1.0) if dtype.itemsize > 1 else (0.5, 2.0)
    key_scale, value_scale = (ones * torch.tensor(scales, device=DEVICE)).split(1)
    return LayerInputs(layer, entries, head_size**-0.5, soft_cap, key_scale, value_scale)


def attended(attend, query, rows, tokens, inputs, num_programs):
    output = torch.full_like(query, 7.0)
    attend(query, rows, tokens, work_list(rows, tokens, num_programs), inputs, output)
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
def test_as_the_plain_twin(step, group_size, head_size, num_programs, soft_cap, data):
    """Ragged lengths, heads with hardly anything, any number of queries to a head."""
    rows, tokens = device_rows(step), device_tokens(step, padding=data.draw(st.integers(0, 2)))
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    inputs = layer_inputs(step, layer, head_size, torch.float32, soft_cap)
    shape = (len(tokens.ends), rows.num_kv_heads * group_size, head_size)
    query = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    arguments = (query, rows, tokens, inputs, num_programs)
    made, plain = (attended(f, *arguments) for f in (attend_by_head, attend_by_head_plain))
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    assert (made[tokens.ends == 0] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@settings(max_examples=8)
@given(step=steps(kinds=("decode",)))
def test_smaller_numbers(step, dtype):
    """What is stored as a multiple of a scale is read as what it stands for."""
    rows, tokens = device_rows(step), device_tokens(step)
    inputs = layer_inputs(step, 0, 32, dtype)
    shape = (len(tokens.ends), rows.num_kv_heads * 4, 32)
    query = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    arguments = (query.to(DEVICE, torch.float16), rows, tokens, inputs, 3)
    made, plain = (attended(f, *arguments) for f in (attend_by_head, attend_by_head_plain))
    torch.testing.assert_close(made, plain, rtol=1e-2, atol=1e-2)


def test_queries_that_are_part_of_a_wider_projection():
    step = next(iter([one_step()]))
    rows, tokens = device_rows(step), device_tokens(step)
    inputs = layer_inputs(step, 0, 16, torch.float32)
    shape = (len(tokens.ends), rows.num_kv_heads * 2 + 3, 16)
    wide = torch.randn(shape, device=DEVICE)
    query = wide[:, : rows.num_kv_heads * 2]
    work = work_list(rows, tokens, 4)
    made, plain = torch.empty_like(wide), torch.empty_like(query)
    attend_by_head(query, rows, tokens, work, inputs, made[:, : rows.num_kv_heads * 2])
    attend_by_head_plain(query, rows, tokens, work, inputs, plain)
    torch.testing.assert_close(made[:, : rows.num_kv_heads * 2], plain, rtol=1e-4, atol=1e-5)


def one_step():
    import numpy as np

    from headkv_vllm.block_row import BlockRow
    from tests.steps import Step

    rows = (BlockRow(100, (3, 4), tuple(range(10, 18)), 0), BlockRow(60, (), tuple(range(20, 26)), 0))
    scores = np.random.default_rng(0).random((2, 3))
    return Step(rows, (104, 70), (105, 71), scores, 16, 8, 1)
