# SPDX-License-Identifier: Apache-2.0
"""What a prompt decides, under an adaptive policy: as the plain twin has it, and as on the CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allotment import Bounds
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.kernels.layer_split import split_layers, split_layers_plain
from headkv_vllm.selection import count_best
from tests.kernels.device_steps import DEVICE, chunks_of, device_rows, nothing_decided, one_step
from tests.steps import steps

pytest.importorskip("triton")
some_steps = steps(kinds=("last", "last", "prefill", "decode"), policies=list(POLICIES))


def some_scores(step, chunks, values):
    """Few different ones, so that many are equal; those of head 0 are the highest by far."""
    shape = (len(step.rows), step.scores.shape[1], chunks.longest)
    made = torch.randint(0, values, shape, generator=torch.Generator().manual_seed(0))
    made[:, 0] *= 3
    return made.to(DEVICE, torch.float32)


def split(by, step, layer, values):
    """What there is afterwards: where head blocks begin, and what was decided."""
    rows, chunks, decided = device_rows(step), chunks_of(step), nothing_decided(step.scores.size)
    by(some_scores(step, chunks, values), rows, chunks, layer, decided, 1)
    return rows.first.cpu(), decided.counts.cpu()


@settings(max_examples=60)
@given(some_steps, st.sampled_from([1, 3, 2000]), st.data())
def test_as_the_plain_twin_and_the_cpu_backend(step, values, data):
    layer = data.draw(st.integers(0, step.scores.shape[0] - 1))
    num_kv_heads = step.scores.shape[1]
    own = slice(layer * num_kv_heads, (layer + 1) * num_kv_heads)
    first, counts = split(split_layers, step, layer, values)
    plain_first, plain_counts = split(split_layers_plain, step, layer, values)
    assert torch.equal(first, plain_first)
    assert torch.equal(counts, plain_counts)
    before, scores = device_rows(step).first.cpu(), some_scores(step, chunks_of(step), values)
    for request, row in enumerate(step.rows):
        ends_here = step.starts[request] < row.num_prompt_tokens <= step.ends[request]
        is_split = POLICIES[step.policy(request)].adaptive and row.compressed_blocks and ends_here
        if not is_split:
            assert torch.equal(first[request], before[request])
            continue
        most = step.num_full_blocks(request)
        total = int(before[request].diff()[own].sum())
        of_heads = scores[request, :, : most * step.block_size].cpu()
        best = count_best(of_heads, total * step.block_size)
        expected = split_layer(best, total, Bounds(1, most)).tolist()
        assert counts[row.compressed_blocks[0], own].tolist() == expected
        assert first[request].diff()[own].tolist() == expected
        others = [head for head in range(step.scores.size) if not own.start <= head < own.stop]
        assert torch.equal(first[request].diff()[others], before[request].diff()[others])


def test_over_several_tiles():
    policy = list(POLICIES).index("adakv")
    row = replace(
        one_step().rows[0],
        num_prompt_tokens=2600,
        blocks=tuple(range(10, 180)),
        policy_index=policy,
        compressed_blocks=tuple(range(200, 240)),
    )
    step = replace(one_step(), rows=(row,), starts=(2592,), ends=(2600,))
    for values in (1, 7, 10**6):
        made, plain = (split(by, step, 1, values) for by in (split_layers, split_layers_plain))
        assert all(map(torch.equal, made, plain))
        assert made[1][200, 3] >= made[1][200, 4]
