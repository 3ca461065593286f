# SPDX-License-Identifier: Apache-2.0
"""Steps as kernels see them, on the GPU if there is one and in Triton's interpreter if not."""

from typing import Final

import torch

from headkv_vllm.block_row import num_compressed_blocks
from headkv_vllm.kernels.rows import DeviceRows, DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens_plain
from tests.steps import Step

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_rows(step: Step) -> DeviceRows:
    """With what the CPU backend deals out."""
    num_layers, num_kv_heads = step.scores.shape
    first = torch.zeros((len(step.rows), step.scores.size + 1), dtype=torch.int32)
    for request in num_compressed_blocks(step.block_table.numpy()).nonzero()[0].tolist():
        first[request, 1:] = step.num_head_blocks(request).flatten().cumsum(0)
    table = step.block_table.to(DEVICE)
    sizes = (num_layers, num_kv_heads, step.block_size, step.window)
    return DeviceRows(table, first.to(DEVICE), *sizes)


def device_tokens(step: Step, padding: int = 0) -> DeviceTokens:
    tokens, _ = step_tokens_plain(*token_arguments(step, padding))
    return DeviceTokens(tokens.requests.to(DEVICE), tokens.ends.to(DEVICE))


def token_arguments(step: Step, padding: int) -> tuple[torch.Tensor | int, ...]:
    return (
        step.block_table.to(DEVICE),
        step.query_start_loc.to(DEVICE),
        step.seq_lens.to(DEVICE),
        len(step.tokens) + padding,
        int(step.query_lens.max()),
        step.block_size,
    )
