# SPDX-License-Identifier: Apache-2.0
"""Chunks that a step completes: what each head keeps, and that it is copied where it belongs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.kernels.kept_entries import copy_entries, copy_entries_plain
from headkv_vllm.kernels.kept_positions import kept_positions, kept_positions_plain
from headkv_vllm.kernels.position_scores import Wanted, position_scores, position_scores_plain
from headkv_vllm.kernels.window_scores import window_scores, window_scores_plain
from tests.kernels.device_steps import (
    DEVICE,
    chunks_of,
    device_rows,
    layer_inputs,
    one_step,
    some_queries,
)
from tests.steps import steps

pytest.importorskip("triton")
FEW = settings(max_examples=30)
RECENT = torch.tensor(
    [int(p.positions == "recency") for p in POLICIES.values()], dtype=torch.int32, device=DEVICE
)
some_steps = steps(kinds=("last", "last", "resumed", "prefill", "decode"))


def some_scores(step, chunks, values):
    shape = (len(step.rows), step.scores.shape[1], chunks.longest)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, values, shape, generator=generator).to(DEVICE, torch.float32)


@FEW
@given(
    some_steps,
    st.sampled_from([1, 2, 5]),
    st.sampled_from([16, 24]),
    st.sampled_from(["mean", "max"]),
    st.sampled_from([0.0, 5.0]),
    st.data(),
)
def test_window_scores(step, group_size, head_size, reduction, soft_cap, data):
    rows, chunks = device_rows(step), chunks_of(step, data.draw(st.integers(0, 9)))
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    inputs = layer_inputs(step, layer, head_size, torch.float32, soft_cap)
    query = some_queries(len(step.tokens), rows.num_kv_heads * group_size, head_size)
    arguments = (query, rows, chunks, inputs, reduction)
    made, plain = window_scores(*arguments), window_scores_plain(*arguments)
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-6)


def test_window_scores_over_several_tiles():
    """The window lies across the end of a tile, so that one has nothing for its first queries."""
    for length in (130, 256, 259):
        rows = (replace(one_step().rows[0], num_prompt_tokens=length, blocks=tuple(range(10, 30))),)
        step = replace(one_step(), rows=rows, starts=(0,), ends=(length,))
        chunks, inputs = chunks_of(step), layer_inputs(step, 1, 16, torch.float32)
        query = some_queries(length, 6, 16)
        arguments = (query, device_rows(step), chunks, inputs, "mean")
        made = window_scores(*arguments)
        torch.testing.assert_close(made, window_scores_plain(*arguments), rtol=1e-4, atol=1e-6)
        assert made[..., : length - 8].sum() > 1


@FEW
@given(
    some_steps,
    st.sampled_from([1, 3, 7]),
    st.sampled_from(["max", "avg"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_position_scores(step, kernel_size, pooling, value_norm, sink):
    rows, chunks = device_rows(step), chunks_of(step)
    attention = some_scores(step, chunks, 50)
    attention[..., 0] = float("nan")
    inputs = layer_inputs(step, 0, 16, torch.float32)
    options = {"kernel_size": kernel_size, "pooling": pooling, "value_norm": value_norm}
    asked = Settings(budget=1024, window=step.window, sink=sink, **options)
    arguments = (attention, rows, chunks, inputs, Wanted(asked, RECENT))
    made, plain = position_scores(*arguments), position_scores_plain(*arguments)
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-6)


@FEW
@given(some_steps, st.sampled_from([1, 3, 2000]), st.data())
def test_top_positions(step, values, data):
    """Few different scores, so that most of what is kept is chosen among equal ones."""
    rows, chunks = device_rows(step), chunks_of(step)
    layer = data.draw(st.integers(0, rows.num_layers - 1))
    arguments = (some_scores(step, chunks, values), rows, chunks, layer)
    assert torch.equal(kept_positions(*arguments), kept_positions_plain(*arguments))


def test_top_positions_over_several_tiles():
    rows = (replace(one_step().rows[0], num_prompt_tokens=2600, blocks=tuple(range(10, 180))),)
    step = replace(one_step(), rows=rows, starts=(2592,), ends=(2600,))
    chunks = chunks_of(step)
    for values in (1, 2, 7, 10**6):
        arguments = (some_scores(step, chunks, values), device_rows(step), chunks, 1)
        assert torch.equal(kept_positions(*arguments), kept_positions_plain(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@settings(max_examples=12)
@given(step=some_steps, seed=st.integers(0, 2))
def test_entries_are_copied_as_they_are(dtype, step, seed):
    rows, chunks = device_rows(step), chunks_of(step)
    inputs = layer_inputs(step, seed % rows.num_layers, 24, dtype)
    positions = kept_positions(some_scores(step, chunks, 9), rows, chunks, inputs.layer)
    by_twin = replace(inputs, head_blocks=inputs.head_blocks.clone())
    before = inputs.head_blocks.clone().view(torch.uint8)
    copy_entries(positions, rows, chunks, inputs)
    copy_entries_plain(positions, rows, chunks, by_twin)
    made, plain = (i.head_blocks.view(torch.uint8) for i in (inputs, by_twin))
    assert torch.equal(made, plain)
    changed = (made != before).flatten(1).any(1).nonzero().flatten() // step.scores.size
    compressed = [b for row in step.rows for b in row.compressed_blocks]
    assert set(changed.tolist()) <= set(compressed)
