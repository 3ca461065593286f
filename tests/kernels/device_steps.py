# SPDX-License-Identifier: Apache-2.0
"""Steps as kernels see them, on the GPU if there is one and in Triton's interpreter if not."""

from typing import Any, Final

import numpy as np
import torch

from headkv_vllm.block_row import BlockRow, num_compressed_blocks
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import DeviceRows, DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens_plain
from tests.steps import Step

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_BLOCKS: Final = 400
"""Of the pool: what steps take their blocks from."""


def device_rows(step: Step) -> DeviceRows:
    """With what the CPU backend deals out."""
    num_layers, num_kv_heads = step.scores.shape
    first = torch.zeros((len(step.rows), step.scores.size + 1), dtype=torch.int32)
    for request in num_compressed_blocks(step.block_table.numpy()).nonzero()[0].tolist():
        first[request, 1:] = step.num_head_blocks(request).flatten().cumsum(0)
    table = step.block_table.to(DEVICE)
    sizes = (num_layers, num_kv_heads, step.block_size, step.window)
    return DeviceRows(table, first.to(DEVICE), *sizes)


def nothing_decided(num_heads: int) -> Decided:
    """num_heads: of all layers. Where a prompt has not written, counts are no counts."""
    adaptive = [int(policy.adaptive) for policy in POLICIES.values()]
    counts = torch.full((NUM_BLOCKS, num_heads), -99, dtype=torch.int32, device=DEVICE)
    return Decided(torch.tensor(adaptive, dtype=torch.int32, device=DEVICE), counts)


def device_tokens(step: Step, padding: int = 0) -> DeviceTokens:
    tokens, _ = step_tokens_plain(*token_arguments(step, padding))
    return DeviceTokens(tokens.requests.to(DEVICE), tokens.ends.to(DEVICE))


def token_arguments(step: Step, padding: int) -> tuple[Any, ...]:
    return (
        step.block_table.to(DEVICE),
        step.query_start_loc.to(DEVICE),
        step.seq_lens.to(DEVICE),
        len(step.tokens) + padding,
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
