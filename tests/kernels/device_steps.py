# SPDX-License-Identifier: Apache-2.0
"""Steps as kernels see them, on the GPU if there is one and in Triton's interpreter if not."""

from typing import Any, Final

import numpy as np
import torch

from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.kernels import reference
from headkv_vllm.kernels.inputs import Buffers, Chunks, DeviceRows, DeviceTokens, LayerInputs
from tests.cache.steps import Step

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_BLOCKS: Final = 400
"""Of the pool: what steps take their blocks from."""


def device_rows(step: Step) -> DeviceRows:
    """With the allocations of the CPU backend; where no request has written, there is rubbish."""
    allocations = torch.full((NUM_BLOCKS, step.scores.size + 1), -99, dtype=torch.int32)
    for request, row in enumerate(step.rows):
        if row.private_blocks:
            starts = step.num_head_blocks(request).flatten().cumsum(0)
            allocations[row.private_blocks[0]] = torch.tensor([0, *starts])
    table = step.block_table.to(DEVICE)
    sizes = (*step.scores.shape, step.block_size, step.window)
    return DeviceRows(table, allocations.to(DEVICE), *sizes)


def device_tokens(step: Step, padding: int = 0) -> DeviceTokens:
    tokens, _ = reference.step_tokens(*token_arguments(step, padding))
    return DeviceTokens(tokens.requests.to(DEVICE), tokens.ends.to(DEVICE))


def token_arguments(step: Step, padding: int) -> tuple[Any, ...]:
    return (
        step.block_table.to(DEVICE),
        step.query_start_loc.to(DEVICE),
        step.seq_lens.to(DEVICE),
        torch.zeros(len(step.tokens) + padding, dtype=torch.int64, device=DEVICE),
        int(step.query_lens.max()),
        step.block_size,
        Buffers(DEVICE),
    )


def layer_inputs(
    step: Step, layer: int, head_size: int, dtype: torch.dtype, soft_cap: float = 0.0
) -> LayerInputs:
    """Random entries; small numbers are multiples of scales that are not 1."""
    shape = (NUM_BLOCKS * step.scores.size, step.block_size, 2 * head_size)
    entries = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    scales = (1.0, 1.0) if dtype.itemsize > 1 else (0.5, 2.0)
    key_scale, value_scale = torch.tensor(scales, device=DEVICE).split(1)
    return LayerInputs(layer, entries, head_size**-0.5, soft_cap, key_scale, value_scale)


def some_queries(
    num_tokens: int, num_heads: int, head_size: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, num_heads, head_size, generator=generator).to(DEVICE, dtype)


def one_step() -> Step:
    """A request that is compressed and one that is not, one token each; 2 layers, 3 KV heads."""
    rows = (
        BlockRow(100, (3, 4), tuple(range(10, 18)), 0),
        BlockRow(60, (), tuple(range(20, 26)), 0),
    )
    scores = np.random.default_rng(0).random((2, 3))
    return Step(rows, (104, 70), (105, 71), scores, block_size=16, window=8, padding=1)


def chunks_of(step: Step, more_tokens: int = 0) -> Chunks:
    """All requests of the step, for only the device knows which are prompts that end here."""
    requests = torch.arange(len(step.rows), dtype=torch.int32, device=DEVICE)
    locations = (step.query_start_loc.to(DEVICE), step.seq_lens.to(DEVICE))
    most_new = int(step.query_lens.max()) + more_tokens
    return Chunks(requests, *locations, max(step.ends) + more_tokens, most_new)
