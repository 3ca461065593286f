# SPDX-License-Identifier: Apache-2.0
"""The answer of GET stats: the server's own metrics of compression."""

import time
from collections import Counter
from collections.abc import Iterable
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from pydantic import BaseModel, Field

from headkv_vllm.engine.metrics import definitions as metrics
from headkv_vllm.server.refusal import Refusal


class CompressionTime(BaseModel):
    """number: of compressions. seconds: time for selecting and copying, in total."""

    number: int
    seconds: float


class AllocationCacheStats(BaseModel):
    """Allocations that workers found in their cache (hits), computed (misses), and keep (size)."""

    hits: int
    misses: int
    size: int


class Stats(BaseModel):
    """The `headkv:` metrics of /metrics and the requests in vLLM's queues, summed over engines.

    time: when the metrics were read, in seconds since 1970. Tokens, requests and freed blocks are
    counted since the server started. Blocks, head blocks and live requests are those of now.
    """

    time: float
    compressed_requests: int
    skipped_requests: dict[str, int] = Field(description="by reason")
    compressions: dict[str, int] = Field(description="by kind")
    prompt_tokens: int
    kept_tokens: int
    freed_blocks: int
    compression: CompressionTime
    live_compressed_requests: int
    head_blocks_in_use: int
    blocks_in_use: int
    stock_blocks: int = Field(description="blocks that these requests would use in stock vLLM")
    allocation_cache: AllocationCacheStats
    running_requests: int
    waiting_requests: int


def read_stats(registry: CollectorRegistry) -> Stats:
    """The current statistics in `registry`. Raises Refusal when they are not collected."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    if not any(sample.name.startswith(metrics.PREFIX) for sample in samples):
        raise Refusal(
            HTTPStatus.NOT_FOUND, "there are no statistics: the stat logger was not loaded"
        )
    return _stats(samples)


_BY_LABEL = (metrics.SKIPPED_REQUESTS, metrics.COMPRESSIONS)


def _stats(samples: Iterable[Sample]) -> Stats:
    total: dict[str, float] = {}
    by_label: dict[str, Counter[str]] = {metric.name: Counter() for metric in _BY_LABEL}
    for sample in samples:
        total[sample.name] = total.get(sample.name, 0) + sample.value
        if sample.name in by_label:
            label = metrics.METRICS[sample.name].label
            assert label is not None
            by_label[sample.name][sample.labels[label]] += int(sample.value)

    def number(name: str) -> int:
        return round(total.get(name, 0))

    compression = metrics.COMPRESSION_SECONDS.name
    return Stats(
        time=time.time(),
        compressed_requests=number(metrics.COMPRESSED_REQUESTS.name),
        skipped_requests=dict(by_label[metrics.SKIPPED_REQUESTS.name]),
        compressions=dict(by_label[metrics.COMPRESSIONS.name]),
        prompt_tokens=number(metrics.PROMPT_TOKENS.name),
        kept_tokens=number(metrics.KEPT_TOKENS.name),
        freed_blocks=number(metrics.FREED_BLOCKS.name),
        compression=CompressionTime(
            number=number(f"{compression}_count"), seconds=total.get(f"{compression}_sum", 0)
        ),
        live_compressed_requests=number(metrics.LIVE_COMPRESSED_REQUESTS.name),
        head_blocks_in_use=number(metrics.HEAD_BLOCKS_IN_USE.name),
        blocks_in_use=number(metrics.BLOCKS_IN_USE.name),
        stock_blocks=number(metrics.STOCK_BLOCKS.name),
        allocation_cache=AllocationCacheStats(
            hits=number(metrics.ALLOCATION_CACHE_HITS.name),
            misses=number(metrics.ALLOCATION_CACHE_MISSES.name),
            size=number(metrics.ALLOCATION_CACHE_SIZE.name),
        ),
        running_requests=number("vllm:num_requests_running"),
        waiting_requests=number("vllm:num_requests_waiting"),
    )
