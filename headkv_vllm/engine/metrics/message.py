# SPDX-License-Identifier: Apache-2.0
"""How an engine's numbers reach the process that serves `/metrics`.

vLLM sends its scheduler's statistics with each step's outputs, to one of its API servers. Ours
ride on them as whole numbers by key: a metric's name, or `name/detail`. Counters and gauges travel
as what they changed by, so that the servers' sums are right whoever gets which message, and in
whatever order they read theirs; times travel as microseconds.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

from vllm.v1.metrics.stats import SchedulerStats

from headkv_vllm.engine.metrics.definitions import METRICS, PREFIX, Metric


@dataclass(frozen=True)
class Reading:
    """One number out of a message. detail: the value of the metric's own label, if it has one."""

    metric: Metric
    detail: str
    value: int


def message_of(stats: SchedulerStats) -> MutableMapping[str, int]:
    """Where numbers by name ride: vLLM sends all that is in there, and reads what it knows."""
    message: MutableMapping[str, int] = stats.num_kv_fetch_reqs_by_stage
    return message


def take_readings(stats: SchedulerStats) -> list[Reading]:
    """Take what is ours out of `stats`, so that vLLM's log lines stay as they are."""
    message = message_of(stats)
    ours = [key for key in message if key.startswith(PREFIX)]
    parts = [(key.partition("/"), message.pop(key)) for key in ours]
    return [Reading(METRICS[name], detail, value) for (name, _, detail), value in parts]
