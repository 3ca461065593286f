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
from headkv_vllm.budgets.request import RequestBudget, first_point
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.planner import BatchPlanner
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.config import Settings

STATIC = [name for name, policy in POLICIES.items() if not policy.adaptive]
NUM_QUERY_BLOCKS = 1
"""A block has room for the queries of any window."""
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
    compress_prefill: bool = False

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
        return bool(row.private_blocks) and position >= self.first_point(request)

    def num_compressed(self, request):
        """K. All but one of the private blocks of a request that is compressed again."""
        row = self.rows[request]
        return len(row.private_blocks) - (NUM_QUERY_BLOCKS if row.interval else 0)

    def compressed_blocks(self, request):
        return self.rows[request].private_blocks[: self.num_compressed(request)]

    def first_point(self, request):
        row = self.rows[request]
        shape = (row.num_prompt_tokens, self.num_compressed(request), row.interval)
        return first_point(*shape, self.settings, self.block_size)

    def points_below(self, request, end):
        """The compression points of a request below `end`, by counting."""
        point, interval = self.first_point(request), self.rows[request].interval
        points = []
        while point < end:
            points.append(point)
            point = point + interval * self.block_size if interval else end
        return points

    def num_replaced(self, request):
        """The blocks that head blocks have replaced for the compressed tokens of this step."""
        return (self.points_below(request, self.ends[request])[-1] - self.window) // self.block_size

    @property
    def settings(self):
        return step_settings(self.window, self.compress_prefill)

    def policy(self, request):
        return list(POLICIES)[self.rows[request].policy_index]

    def budget(self, request):
        length, num_full = self.rows[request].num_prompt_tokens, self.num_full_blocks(request)
        shape = (length, self.num_compressed(request), num_full, self.policy(request))
        delay = self.first_point(request) - length
        return RequestBudget(*shape, delay=delay, interval=self.rows[request].interval)

    def num_full_blocks(self, request):
        """F of the first compression."""
        return (self.first_point(request) - self.window) // self.block_size

    def num_head_blocks(self, request):
        """n [L, H] of a compressed request."""
        return torch.tensor(self.allocations.allocation(self.budget(request)), dtype=torch.int32)

    @cached_property
    def allocations(self):
        return AllocationCache(self.scores, self.settings)

    def planner(self, adaptive=None, compress_again=lambda *_: None):
        """adaptive: the allocations that prompts have decided."""
        adaptive = adaptive or AdaptiveAllocations()
        points = CompressionPoints(self.settings, self.block_size, NUM_QUERY_BLOCKS)
        read = RowAllocations(self.allocations, adaptive, points)
        return BatchPlanner(read, *self.scores.shape, compress_again, self.window)

    def plan(self, adaptive=None):
        return self.plan_by(self.planner(adaptive))

    def plan_by(self, planner):
        return planner.plan(self.block_table, self.query_start_loc, self.seq_lens)


def step_settings(window, compress_prefill):
    """The interval that counts is that of the rows."""
    every = 64 if compress_prefill else 0
    return Settings(
        budget=1024, window=window, compress_prefill=compress_prefill, compress_every=every
    )


@st.composite
def steps(
    draw,
    kinds=("decode", "drafts", "prefill", "last", "resumed"),
    policies=STATIC,
    intervals=(0,),
):
    """Steps in which each request has its own policy, and its own interval, one of `intervals`."""
    block_size = draw(st.sampled_from([1, 2, 3, 5, 16]))
    window = draw(st.integers(1, 8))
    num_layers, num_kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    is_prefill = any(intervals) and draw(st.booleans())
    pool = np.random.default_rng(seed).permutation(range(1, 400)).tolist()
    rows, starts, ends = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        num_full = draw(st.integers(0, 6))
        num_prompt = window + num_full * block_size + draw(st.integers(0, block_size - 1))
        num_compressed = draw(st.integers(0, max(0, num_full - 1)))
        interval = draw(st.sampled_from(intervals)) if num_compressed else 0
        if interval:  # at least a window, so that windows do not overlap
            interval = max(interval, -(-window // block_size))
        shape = (num_prompt, num_compressed, interval)
        first = first_point(*shape, step_settings(window, is_prefill), block_size)
        policy = draw(st.sampled_from(policies))
        # A chunk ends with a prompt that is compressed.
        fitting = [k for k in kinds if k != "resumed" or num_compressed == 0]
        kind = draw(st.sampled_from(fitting or ["last"]))
        generated = draw(st.integers(1, (2 + 2 * interval) * block_size))
        window_start = num_prompt - window
        start, end = {
            "decode": (first + generated - 1, first + generated),
            "drafts": (
                first + generated - 1,
                first + generated + draw(st.integers(0, 4)),
            ),
            "prefill": (0, draw(st.integers(1, window_start)) if window_start else num_prompt),
            "last": (draw(st.integers(0, window_start)), num_prompt),
            "resumed": (draw(st.integers(0, window_start)), num_prompt + generated),
        }[kind]
        if interval:  # a step ends at a compression point
            every = interval * block_size
            end = min(end, first if start < first else start + every - (start - first) % every)
        num_blocks = -(-end // block_size)
        num_private = num_compressed + (NUM_QUERY_BLOCKS if interval else 0)
        rows.append(
            BlockRow(
                num_prompt,
                tuple(pool.pop() for _ in range(num_private)),
                tuple(pool.pop() for _ in range(num_blocks)),
                list(POLICIES).index(policy),
                interval,
            )
        )
        starts.append(start)
        ends.append(end)
    scores = np.random.default_rng(seed).random((num_layers, num_kv_heads)) ** 4
    padding = draw(st.integers(0, 2))
    return Step(
        tuple(rows), tuple(starts), tuple(ends), scores, block_size, window, padding, is_prefill
    )


EVERY_STEP = steps(intervals=(0, 0, 1, 2))
"""Steps in which some requests are compressed again."""
