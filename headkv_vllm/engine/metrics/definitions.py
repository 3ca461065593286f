# SPDX-License-Identifier: Apache-2.0
"""Every number that a server with headkv adds to vLLM's own `/metrics`, declared once."""

from dataclasses import dataclass
from typing import Literal, get_args

from headkv_vllm.budgets.request import SkipReason

PREFIX = "headkv:"
ENGINE_LABELS = ("model_name", "engine")
"""What vLLM's own metrics are told apart by, and ours too."""


@dataclass(frozen=True)
class Metric:
    """One family of samples.

    name: as `/metrics` shows it; a histogram's samples have suffixes besides.
    label, label_values: what tells samples apart besides the engine, and all that it may be.
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
    "Requests whose prompt was compressed.",
)
SKIPPED_REQUESTS = Metric(
    "headkv:skipped_requests_total",
    "counter",
    "Requests whose prompt was computed and left whole, by reason.",
    label="reason",
    label_values=get_args(SkipReason),
)
PROMPT_TOKENS = Metric(
    "headkv:prompt_tokens_total",
    "counter",
    "Prompt tokens of compressed requests.",
)
KEPT_TOKENS = Metric(
    "headkv:kept_tokens_total",
    "counter",
    "Prompt tokens that compressed requests keep, on average over the KV heads.",
)
FREED_BLOCKS = Metric(
    "headkv:freed_blocks_total",
    "counter",
    "Prompt blocks that compressed requests gave back while they went on.",
)
COMPRESSION_SECONDS = Metric(
    "headkv:compression_seconds",
    "histogram",
    "Time to choose and copy what one prompt keeps, over the layers of the engine's first worker.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HEAD_BLOCKS_IN_USE = Metric(
    "headkv:head_blocks_in_use",
    "gauge",
    "Head blocks that live compressed requests keep their prompts in, over the whole model.",
)
LIVE_COMPRESSED_REQUESTS = Metric(
    "headkv:live_compressed_requests",
    "gauge",
    "Requests that generate from a compressed prompt now.",
)
BLOCKS_IN_USE = Metric(
    "headkv:blocks_in_use",
    "gauge",
    "Blocks that live requests hold now; one that several share counts for each of them.",
)
STOCK_BLOCKS = Metric(
    "headkv:stock_blocks",
    "gauge",
    "Blocks that the same requests would hold without headkv, counted alike.",
)
ALLOCATION_CACHE_HITS = Metric(
    "headkv:allocation_cache_hits_total",
    "counter",
    "Budgets of heads that the engine's first worker had at hand.",
)
ALLOCATION_CACHE_MISSES = Metric(
    "headkv:allocation_cache_misses_total",
    "counter",
    "Budgets of heads that the engine's first worker had to work out.",
)
ALLOCATION_CACHE_SIZE = Metric(
    "headkv:allocation_cache_size",
    "gauge",
    "Budgets of heads that the engine's first worker has at hand now.",
)

METRICS = {
    metric.name: metric
    for metric in (
        COMPRESSED_REQUESTS,
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
