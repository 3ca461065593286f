# SPDX-License-Identifier: Apache-2.0
"""Every number that a server with headkv adds to vLLM's own `/metrics`, and how it gets there.

vLLM sends the statistics of its scheduler with each step's outputs to one of its API servers. Our
numbers travel with them, as integers by key: a metric's name, or `name/detail`. Counters and gauges
travel as differences, so that the sums of all servers are right in any order of messages. Times
travel in microseconds.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from headkv_vllm.budgets.request import SkipReason

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

PREFIX = "headkv:"
ENGINE_LABELS = ("model_name", "engine")
"""The labels of vLLM's own metrics, which our metrics have too."""


@dataclass(frozen=True)
class Metric:
    """One family of samples.

    name: the name on `/metrics`. The samples of a histogram add suffixes to it.
    label, label_values: one more label of the samples, and its possible values.
    buckets: upper bounds of a histogram's buckets, without the infinite one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None
    label_values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return (*ENGINE_LABELS, self.label) if self.label else ENGINE_LABELS

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{suffix}" for suffix in ("bucket", "count", "sum"))


COMPRESSED_REQUESTS = Metric(
    "headkv:compressed_requests_total",
    "counter",
    "Requests that were compressed.",
)
COMPRESSIONS = Metric(
    "headkv:compressions_total",
    "counter",
    "Compressions: of prompts at their end, while prompts are read, and of requests that generate.",
    label="kind",
    label_values=("prompt", "prefill", "generation"),
)
SKIPPED_REQUESTS = Metric(
    "headkv:skipped_requests_total",
    "counter",
    "Requests whose prompt was computed but not compressed, by reason.",
    label="reason",
    label_values=get_args(SkipReason),
)
PROMPT_TOKENS = Metric(
    "headkv:prompt_tokens_total",
    "counter",
    "Tokens of requests when they were first compressed. For most requests this is their prompt.",
)
KEPT_TOKENS = Metric(
    "headkv:kept_tokens_total",
    "counter",
    "Of these tokens, those that compressed requests keep, on average over the KV heads.",
)
FREED_BLOCKS = Metric(
    "headkv:freed_blocks_total",
    "counter",
    "Blocks of tokens that compressed requests freed before they ended.",
)
COMPRESSION_SECONDS = Metric(
    "headkv:compression_seconds",
    "histogram",
    "Time to select and copy the kept entries of one request, over all layers of the first worker.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HEAD_BLOCKS_IN_USE = Metric(
    "headkv:head_blocks_in_use",
    "gauge",
    "Head blocks with kept entries of live compressed requests, over the whole model.",
)
LIVE_COMPRESSED_REQUESTS = Metric(
    "headkv:live_compressed_requests",
    "gauge",
    "Requests that generate from a compressed cache now.",
)
BLOCKS_IN_USE = Metric(
    "headkv:blocks_in_use",
    "gauge",
    "Blocks that live requests hold now. A shared block counts for each of its requests.",
)
STOCK_BLOCKS = Metric(
    "headkv:stock_blocks",
    "gauge",
    "Blocks that the same requests would hold without headkv, counted in the same way.",
)
ALLOCATION_CACHE_HITS = Metric(
    "headkv:allocation_cache_hits_total",
    "counter",
    "Allocations of budgets to heads that the engine's first worker found in its cache.",
)
ALLOCATION_CACHE_MISSES = Metric(
    "headkv:allocation_cache_misses_total",
    "counter",
    "Allocations of budgets to heads that the engine's first worker had to compute.",
)
ALLOCATION_CACHE_SIZE = Metric(
    "headkv:allocation_cache_size",
    "gauge",
    "Allocations of budgets to heads in the cache of the engine's first worker now.",
)

METRICS = {
    metric.name: metric
    for metric in (
        COMPRESSED_REQUESTS,
        COMPRESSIONS,
        SKIPPED_REQUESTS,
        PROMPT_TOKENS,
        KEPT_TOKENS,
        FREED_BLOCKS,
        COMPRESSION_SECONDS,
        HEAD_BLOCKS_IN_USE,
        LIVE_COMPRESSED_REQUESTS,
        BLOCKS_IN_USE,
        STOCK_BLOCKS,
        ALLOCATION_CACHE_HITS,
        ALLOCATION_CACHE_MISSES,
        ALLOCATION_CACHE_SIZE,
    )
}


@dataclass(frozen=True)
class Reading:
    """One number of a message. detail: the value of the metric's own label, if it has one."""

    metric: Metric
    detail: str
    value: int


def message_of(stats: "SchedulerStats") -> MutableMapping[str, int]:
    """The dictionary in `stats` that carries our numbers. vLLM sends all of its keys and ignores
    unknown ones."""
    message: MutableMapping[str, int] = stats.num_kv_fetch_reqs_by_stage
    return message


def take_readings(stats: "SchedulerStats") -> list[Reading]:
    """Take our numbers out of `stats`, so that they do not appear in vLLM's log lines."""
    message = message_of(stats)
    ours = [key for key in message if key.startswith(PREFIX)]
    parts = [(key.partition("/"), message.pop(key)) for key in ours]
    return [Reading(METRICS[name], detail, value) for (name, _, detail), value in parts]
