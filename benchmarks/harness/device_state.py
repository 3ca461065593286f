# SPDX-License-Identifier: Apache-2.0
"""Compressed requests with random entries, as kernels see them, for checks without an engine."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headkv_vllm.budgets.allocation import Bounds, allocate
from headkv_vllm.budgets.policies import headkv_shares
from headkv_vllm.cache.block_row import HEADER_SIZE, row_header
from headkv_vllm.config import Settings
from headkv_vllm.kernels.inputs import Buffers, DeviceRows, LayerInputs

BLOCK_SIZE = 16
SETTINGS = Settings(budget=1024)


@dataclass(frozen=True)
class Shape:
    """The shape of a model and its requests. prompt_tokens: the prompt length of each request.

    generated: tokens that each request has generated. kept: compressed blocks of each request.
    """

    num_layers: int
    num_kv_heads: int
    group_size: int
    head_size: int
    prompt_tokens: tuple[int, ...]
    kept: int
    generated: int = 0

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group_size


@dataclass(frozen=True)
class DeviceState:
    """rows: of all requests. num_head_blocks: n[L, H] of each. cache: [num_head_blocks,
    block_size, 2 * head_size]. query_start_loc: [num_reqs + 1] int32, of a step that decodes a
    token of each. seq_lens: [num_reqs] int32.
    """

    shape: Shape
    rows: DeviceRows
    num_head_blocks: npt.NDArray[np.int32]
    cache: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    buffers: Buffers

    def layer(self, index: int) -> LayerInputs:
        one = torch.ones(1, device=self.cache.device)
        return LayerInputs(index, self.cache, self.shape.head_size**-0.5, 0.0, one, one)

    def queries(self, num_tokens: int) -> torch.Tensor:
        shape = (num_tokens, self.shape.num_heads, self.shape.head_size)
        return torch.randn(shape, device=self.cache.device).to(self.cache.dtype)


def made_state(
    shape: Shape, device: torch.device, dtype: torch.dtype, is_even: bool = False
) -> DeviceState:
    """is_even: all heads keep the same number of blocks. Otherwise few heads keep most blocks.

    Requests share no blocks, so that the GPU's caches do not help.
    """
    rng = np.random.default_rng(0)
    num_blocks = [-(-(t + shape.generated) // BLOCK_SIZE) for t in shape.prompt_tokens]
    total = sum(num_blocks) + shape.kept * len(num_blocks)
    pool = rng.permutation(np.arange(1, total + 1)).tolist()
    table = np.zeros((len(num_blocks), HEADER_SIZE + shape.kept + max(num_blocks)), dtype=np.int32)
    heads = (shape.num_layers, shape.num_kv_heads)
    scores = rng.random(heads) ** (0 if is_even else 4)
    shares = headkv_shares(scores, 1, 2, SETTINGS)
    allocations = np.zeros((total + 1, scores.size + 1), dtype=np.int32)
    of_requests = []
    for row, length, count in zip(table, shape.prompt_tokens, num_blocks, strict=True):
        row[:HEADER_SIZE] = row_header(length, shape.kept, policy_index=0, interval=0)
        row[HEADER_SIZE : HEADER_SIZE + shape.kept + count] = [
            pool.pop() for _ in range(shape.kept + count)
        ]
        bounds = Bounds(1, (length - SETTINGS.window) // BLOCK_SIZE)
        of_requests.append(allocate(shares, shape.kept * scores.size, bounds))
        np.cumsum(of_requests[-1], out=allocations[row[HEADER_SIZE], 1:])
    content = (BLOCK_SIZE, 2 * shape.head_size)
    cache = torch.empty(((total + 1) * scores.size, *content), dtype=dtype, device=device)
    ends = [length + shape.generated for length in shape.prompt_tokens]
    sizes = (*heads, BLOCK_SIZE, SETTINGS.window)
    on_device = (torch.from_numpy(one).to(device) for one in (table, allocations))
    return DeviceState(
        shape,
        DeviceRows(*on_device, *sizes),
        np.stack(of_requests),
        cache.normal_(),
        torch.arange(len(ends) + 1, dtype=torch.int32, device=device),
        torch.tensor(ends, dtype=torch.int32, device=device),
        Buffers(device),
    )
