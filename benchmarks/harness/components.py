# SPDX-License-Identifier: Apache-2.0
"""Times parts of a step without an engine: planning the step, and compressing a prompt."""

import time
from statistics import median

import numpy as np
import torch

from benchmarks.harness.sides import BLOCK_SIZE
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.request import request_budget
from headkv_vllm.cache.block_row import HEADER_SIZE, BlockRow
from headkv_vllm.cache.compression import CPU_WORKSPACE, Compressor, LayerLogits
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.planner import BatchPlanner
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.config import Settings

POLICY_INDEX = 0
"""The index of headkv in the registry of policies."""


class Planning:
    """A worker's planner, and requests that decode."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        num_requests: int,
        num_prompt_tokens: int,
        budget: int,
    ) -> None:
        settings = Settings(budget=budget)
        scores = np.random.default_rng(0).exponential(size=(num_layers, num_kv_heads)) ** 2
        static, adaptive = AllocationCache(scores, settings), AdaptiveAllocations()
        points = CompressionPoints(settings, BLOCK_SIZE, num_query_blocks=0)
        read = RowAllocations(static, adaptive, points)
        # No request is compressed again.
        self.planner = BatchPlanner(read, num_layers, num_kv_heads, lambda *_: None, 1)
        self.num_compressed = request_budget(
            settings, num_prompt_tokens, BLOCK_SIZE
        ).num_compressed_blocks
        self._num_blocks = -(-num_prompt_tokens // BLOCK_SIZE) + 32
        self._rows = torch.tensor(
            [self._row(index, num_prompt_tokens) for index in range(num_requests)],
            dtype=torch.int32,
        )
        # Each request has another position in its block, as requests of different times have.
        self._seq_lens = num_prompt_tokens + 1 + torch.arange(num_requests, dtype=torch.int32)
        self._starts = torch.arange(num_requests + 1, dtype=torch.int32)

    def seconds_per_step(self, num_steps: int = 200) -> float:
        """The median time of planning a step. The requests grow by one token per step."""
        return median(self._seconds(step) for step in range(num_steps))

    def _seconds(self, step: int) -> float:
        start = time.perf_counter()
        self.planner.plan(self._rows, self._starts, self._seq_lens + step)
        return time.perf_counter() - start

    def _row(self, index: int, num_prompt_tokens: int) -> list[int]:
        width = self.num_compressed + self._num_blocks
        blocks = range(1 + index * width, 1 + (index + 1) * width)
        compressed, others = blocks[: self.num_compressed], blocks[self.num_compressed :]
        row = BlockRow(num_prompt_tokens, tuple(compressed), tuple(others), POLICY_INDEX).entries()
        assert len(row) == HEADER_SIZE + width
        return row


class Compressing:
    """One layer of a worker with a prompt in its cache, which is compressed again and again."""

    def __init__(
        self,
        num_kv_heads: int,
        group_size: int,
        head_size: int,
        num_prompt_tokens: int,
        budget: int,
    ) -> None:
        from vllm.platforms import current_platform

        from headkv_vllm.engine.attention.cpu_cache import PackedHeadBlocks

        current_platform.import_kernels()
        torch.manual_seed(0)
        settings = Settings(budget=budget)
        planning = Planning(1, num_kv_heads, 1, num_prompt_tokens, budget)
        rows, starts = planning._rows, torch.tensor([0, num_prompt_tokens]).int()
        batch = planning.planner.plan(rows, starts, torch.tensor([num_prompt_tokens]).int())
        (self._prompt,) = batch.completed_prompts
        shape = ((rows.shape[1] + 1) * num_kv_heads, BLOCK_SIZE, 2 * head_size)
        head_blocks = PackedHeadBlocks(torch.randn(shape).bfloat16(), 1, num_kv_heads, "vec")
        logits = LayerLogits(torch.tensor([head_size**-0.5]), None)
        self._compressor = Compressor(head_blocks, logits, settings, CPU_WORKSPACE)
        heads = num_kv_heads * group_size
        self._window = torch.randn(1, settings.window, heads, head_size).bfloat16()

    def seconds(self, num_times: int = 7) -> float:
        """The median time of compressing the prompt in this layer."""
        return median(self._seconds() for _ in range(num_times))

    def _seconds(self) -> float:
        start = time.perf_counter()
        self._compressor.compress(self._prompt, self._window, [0])
        return time.perf_counter() - start
