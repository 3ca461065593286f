# SPDX-License-Identifier: Apache-2.0
"""Steps of the engine that tests plan: the rows of requests, and what each one computes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from hypothesis import strategies as st

from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.planner import BatchPlanner
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.config import Settings

STATIC = [name for name, policy in POLICIES.items() if not policy.adaptive]
ADAPTIVE = [name for name in POLICIES if name not in STATIC]


@dataclass(frozen=True)
class Step:
    """One step. Request r computes the positions starts[r] .. ends[r] - 1."""

    rows: tuple[BlockRow, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    scores: np.ndarray
    block_size: int
    window: int
    padding: int

    @cached_property
    def block_table(self):
        width = max(len(row.entries()) for row in self.rows) + self.padding
        table = [row.entries() + [0] * (width - len(row.entries())) for row in self.rows]
        return torch.tensor(table, dtype=torch.int32)

    @cached_property
    def query_lens(self):
        return torch.tensor([e - s for s, e in zip(self.starts, self.ends, strict=True)])

    @cached_property
    def seq_lens(self):
        return torch.tensor(self.ends, dtype=torch.int32)

    @cached_property
    def query_start_loc(self):
        return torch.tensor([0, *self.query_lens.cumsum(0).tolist()], dtype=torch.int32)

    @cached_property
    def tokens(self):
        """(request, position) of each token of the batch."""
        ranges = zip(self.starts, self.ends, strict=True)
        return [(r, position) for r, span in enumerate(ranges) for position in range(*span)]

    def is_compressed(self, request, position):
        row = self.rows[request]
        return bool(row.compressed_blocks) and position >= row.num_prompt_tokens

    def policy(self, request):
        return list(POLICIES)[self.rows[request].policy_index]

    def budget(self, request):
        row = self.rows[request]
        length, num_full = row.num_prompt_tokens, self.num_full_blocks(request)
        return RequestBudget(length, len(row.compressed_blocks), num_full, self.policy(request))

    def num_full_blocks(self, request):
        return (self.rows[request].num_prompt_tokens - self.window) // self.block_size

    def num_head_blocks(self, request):
        """n [L, H] of a compressed request."""
        return torch.tensor(self.allocations.allocation(self.budget(request)), dtype=torch.int32)

    @cached_property
    def allocations(self):
        return AllocationCache(self.scores, Settings(budget=1024, window=self.window))

    def planner(self, adaptive=None):
        """adaptive: the allocations that prompts have decided."""
        adaptive = adaptive or AdaptiveAllocations()
        read = RowAllocations(self.allocations, adaptive, self.window, self.block_size)
        return BatchPlanner(read, *self.scores.shape, self.block_size, self.window)

    def plan(self, adaptive=None):
        return self.plan_by(self.planner(adaptive))

    def plan_by(self, planner):
        return planner.plan(self.block_table, self.query_start_loc, self.seq_lens)


@st.composite
def steps(draw, kinds=("decode", "drafts", "prefill", "last", "resumed"), policies=STATIC):
    """Steps in which each request has its own policy."""
    block_size = draw(st.sampled_from([1, 2, 3, 5, 16]))
    window = draw(st.integers(1, 8))
    num_layers, num_kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    pool = np.random.default_rng(seed).permutation(range(1, 400)).tolist()
    rows, starts, ends = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        num_full = draw(st.integers(0, 6))
        num_prompt = window + num_full * block_size + draw(st.integers(0, block_size - 1))
        num_compressed = draw(st.integers(0, max(0, num_full - 1)))
        policy = draw(st.sampled_from(policies))
        # A chunk ends with a prompt that is compressed.
        fitting = [k for k in kinds if k != "resumed" or num_compressed == 0]
        kind = draw(st.sampled_from(fitting or ["last"]))
        generated = draw(st.integers(1, 2 * block_size))
        window_start = num_prompt - window
        start, end = {
            "decode": (num_prompt + generated - 1, num_prompt + generated),
            "drafts": (
                num_prompt + generated - 1,
                num_prompt + generated + draw(st.integers(0, 4)),
            ),
            "prefill": (0, draw(st.integers(1, window_start)) if window_start else num_prompt),
            "last": (draw(st.integers(0, window_start)), num_prompt),
            "resumed": (draw(st.integers(0, window_start)), num_prompt + generated),
        }[kind]
        num_blocks = -(-end // block_size)
        rows.append(
            BlockRow(
                num_prompt,
                tuple(pool.pop() for _ in range(num_compressed)),
                tuple(pool.pop() for _ in range(num_blocks)),
                list(POLICIES).index(policy),
            )
        )
        starts.append(start)
        ends.append(end)
    scores = np.random.default_rng(seed).random((num_layers, num_kv_heads)) ** 4
    padding = draw(st.integers(0, 2))
    return Step(tuple(rows), tuple(starts), tuple(ends), scores, block_size, window, padding)
