# SPDX-License-Identifier: Apache-2.0
"""Counts the numbers of one engine for `/metrics`, in the scheduler's process."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.cache.block_row import HEADER_SIZE, num_row_entries
from headkv_vllm.engine.kv_cache import HeadKVManager
from headkv_vllm.engine.metrics import definitions as metrics
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts

COMPRESSED_PROMPT_COUNTS: Final[dict[metrics.Metric, Callable[[RequestBudget, int], int]]] = {
    metrics.COMPRESSED_REQUESTS: lambda budget, block_size: 1,
    metrics.PROMPT_TOKENS: lambda budget, block_size: budget.first_point,
    metrics.KEPT_TOKENS: lambda budget, block_size: (
        budget.first_point - (budget.num_full_blocks - budget.num_compressed_blocks) * block_size
    ),
}
"""What a request adds to each counter when it is compressed for the first time.

Functions of (budget, block_size).
"""


def prompt_counts(budget: RequestBudget, block_size: int) -> dict[str, int]:
    """What a prompt that has been computed adds to the counters, by the keys of `message`."""
    if not budget.compressed:
        return {f"{metrics.SKIPPED_REQUESTS.name}/{budget.skip_reason}": 1}
    counts = COMPRESSED_PROMPT_COUNTS.items()
    return {metric.name: count(budget, block_size) for metric, count in counts}


def _compression_kind(
    budget: RequestBudget, num_before: int, num_after: int, block_size: int
) -> str | None:
    """What a step compresses: "prompt", "prefill" (a part of a prompt), "generation" or None.

    num_before, num_after: the computed tokens of a request before and after the step.
    """
    if not budget.interval and num_after != budget.first_point:
        return None  # most requests, in most steps
    num_replaced = budget.num_replaced_blocks(num_before, block_size)
    if num_replaced == budget.num_replaced_blocks(num_after, block_size):
        return None
    if budget.is_by_prompt(num_after):
        return "prompt"
    return "prefill" if num_before < budget.num_prompt_tokens else "generation"


@dataclass(frozen=True)
class Occupancy:
    """The blocks of all requests. A shared block counts for each of its requests.

    num_blocks: blocks held now. num_stock_blocks: blocks of the same tokens in stock vLLM.
    num_compressed_requests: requests that have freed their prompt's full blocks.
    num_compressed_blocks: the sum of K over these requests.
    """

    num_blocks: int = 0
    num_stock_blocks: int = 0
    num_compressed_requests: int = 0
    num_compressed_blocks: int = 0


def occupancy(manager: HeadKVManager) -> Occupancy:
    """The blocks of all requests. It reads no entry of a row, because each step calls it."""
    num_blocks = num_stock = num_requests = num_compressed = 0
    for request_id, row in manager.req_to_blocks.items():
        if not row:
            continue
        budget, num_replaced = manager.budgets[request_id], manager.num_replaced_blocks[request_id]
        num_stock += len(row) - num_row_entries(manager.num_private_blocks(budget), 0)
        num_blocks += len(row) - HEADER_SIZE - num_replaced
        if num_replaced:
            num_requests += 1
            num_compressed += budget.num_compressed_blocks
    return Occupancy(num_blocks, num_stock, num_requests, num_compressed)


class SchedulerCounts:
    """Counts one engine's prompts, and reads the counts of its pool and its first worker."""

    def __init__(
        self, manager: HeadKVManager, heads_per_block: int, table: WorkerCounts | None
    ) -> None:
        """heads_per_block: the head blocks of a block, L*H of the whole model."""
        self._manager, self._heads_per_block = manager, heads_per_block
        self._table = table or WorkerCounts.private()
        self._prompts: Counter[str] = Counter()
        self._sent: dict[str, int] = {}
        self._num_compressions = 0
        self._counted: set[str] = set()

    def count_step(self, output: SchedulerOutput, requests: Mapping[str, Request]) -> None:
        """Count what a scheduled step compresses, and the requests that it skips.

        A request is counted once, when a step completes its prompt or, if it is compressed later,
        when it is compressed for the first time.
        output: the step. requests: the live requests after it.
        """
        block_size = self._manager.block_size
        for request_id, num_new in output.num_scheduled_tokens.items():
            budget = self._manager.budgets[request_id]
            num_tokens = requests[request_id].num_computed_tokens
            if kind := _compression_kind(budget, num_tokens - num_new, num_tokens, block_size):
                self._prompts[f"{metrics.COMPRESSIONS.name}/{kind}"] += 1
            if request_id not in self._counted and num_tokens >= budget.first_point:
                self._counted.add(request_id)
                self._prompts.update(prompt_counts(budget, block_size))

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._counted.discard(request_id)

    def take_message(self) -> dict[str, int]:
        """The changes since the last message; see `definitions`."""
        numbers = {**self._counters(), **self._gauges()}
        growth = {name: value - self._sent.get(name, 0) for name, value in numbers.items()}
        self._sent = numbers
        return {name: value for name, value in growth.items() if value} | self._new_compressions()

    def check_integrity(self) -> None:
        """Assert that counters only grow, and that gauges equal a plain count."""
        counters = self._counters()
        assert all(value >= self._sent.get(name, 0) for name, value in counters.items())
        assert self._counted <= self._manager.budgets.keys()
        assert occupancy(self._manager) == _counted_plainly(self._manager)

    def _counters(self) -> dict[str, int]:
        return {
            **self._prompts,
            metrics.FREED_BLOCKS.name: self._manager.num_freed_blocks,
            metrics.ALLOCATION_CACHE_HITS.name: self._table.allocation_cache_hits,
            metrics.ALLOCATION_CACHE_MISSES.name: self._table.allocation_cache_misses,
        }

    def _gauges(self) -> dict[str, int]:
        now = occupancy(self._manager)
        return {
            metrics.BLOCKS_IN_USE.name: now.num_blocks,
            metrics.STOCK_BLOCKS.name: now.num_stock_blocks,
            metrics.LIVE_COMPRESSED_REQUESTS.name: now.num_compressed_requests,
            metrics.HEAD_BLOCKS_IN_USE.name: now.num_compressed_blocks * self._heads_per_block,
            metrics.ALLOCATION_CACHE_SIZE.name: self._table.allocation_cache_size,
        }

    def _new_compressions(self) -> dict[str, int]:
        start, end = self._num_compressions, self._table.num_compressions
        self._num_compressions = end
        times = enumerate(self._table.compressions(start, end))
        return {f"{metrics.COMPRESSION_SECONDS.name}/{index}": time for index, time in times}


def _counted_plainly(manager: HeadKVManager) -> Occupancy:
    """Plain reference of `occupancy`, which counts every entry."""
    held = stock = requests = compressed = 0
    for request_id, row in manager.req_to_blocks.items():
        if not row:
            continue
        budget, entries = manager.budgets[request_id], row[HEADER_SIZE:]
        num_held = sum(not block.is_null for block in entries)
        is_compressed = num_held < len(entries)
        held += num_held
        stock += len(entries) - manager.num_private_blocks(budget)
        requests += is_compressed
        compressed += budget.num_compressed_blocks * is_compressed
    return Occupancy(held, stock, requests, compressed)
