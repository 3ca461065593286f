# SPDX-License-Identifier: Apache-2.0
"""Compressed requests as kernels see them, with made-up entries, for a check without an engine."""

from dataclasses import dataclass

import numpy as np
import torch

from headkv_vllm.budgets.headkv import headkv_shares
from headkv_vllm.config import Settings
from headkv_vllm.kernels.allotment import HeadWeights, Sizes, first_head_blocks
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import DeviceRows

BLOCK_SIZE = 16
SETTINGS = Settings(budget=1024)


@dataclass(frozen=True)
class Shape:
    """Of a model and of what it serves: each request has a prompt of its own length.

    generated: tokens that each request has generated so far. kept: blocks that its prompt became.
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
    """rows: of all requests. weights, decided, sizes: what they were dealt out by. cache:
    [num_head_blocks, block_size, 2 * head_size]. query_start_loc: [num_reqs + 1] int32, of a step
    that decodes a token of each. seq_lens: [num_reqs] int32.
    """

    shape: Shape
    rows: DeviceRows
    weights: HeadWeights
    decided: Decided
    sizes: Sizes
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
    """is_even: all heads keep the same, where few heads keep most otherwise.

    Every block of every request is its own, so that none is read from a cache of the GPU's."""
    rng = np.random.default_rng(0)
    num_blocks = [-(-(t + shape.generated) // BLOCK_SIZE) for t in shape.prompt_tokens]
    total = sum(num_blocks) + shape.kept * len(num_blocks)
    pool = rng.permutation(np.arange(1, total + 1)).tolist()
    width = 3 + shape.kept + max(num_blocks)
    table = np.zeros((len(num_blocks), width), dtype=np.int32)
    for row, length, count in zip(table, shape.prompt_tokens, num_blocks, strict=True):
        row[:3] = length, shape.kept, 0
        row[3 : 3 + shape.kept + count] = [pool.pop() for _ in range(shape.kept + count)]
    rows = torch.from_numpy(table).to(device)
    scores = rng.random((shape.num_layers, shape.num_kv_heads)) ** (0 if is_even else 4)
    weights = HeadWeights.of(headkv_shares(scores, 1, 2, SETTINGS).reshape(1, -1), device)
    shapes = (1, (total + 1, scores.size))
    decided = Decided(*(torch.zeros(n, dtype=torch.int32, device=device) for n in shapes))
    sizes = Sizes(shape.num_kv_heads, SETTINGS.window, BLOCK_SIZE, SETTINGS.min_blocks)
    content = (BLOCK_SIZE, 2 * shape.head_size)
    cache = torch.empty(((total + 1) * scores.size, *content), dtype=dtype, device=device)
    cache.normal_()
    ends = [length + shape.generated for length in shape.prompt_tokens]
    seq_lens = torch.tensor(ends, dtype=torch.int32, device=device)
    starts = torch.arange(len(ends) + 1, dtype=torch.int32, device=device)
    buffers = Buffers(device)
    first = first_head_blocks(rows, starts, seq_lens, weights, decided, sizes, buffers)
    of_heads = (shape.num_layers, shape.num_kv_heads, BLOCK_SIZE, SETTINGS.window)
    of_rows = DeviceRows(rows, first, *of_heads)
    return DeviceState(shape, of_rows, weights, decided, sizes, cache, starts, seq_lens, buffers)
