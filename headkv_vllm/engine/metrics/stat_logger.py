# SPDX-License-Identifier: Apache-2.0
"""`vllm.stat_logger_plugins`: shows the scheduler's numbers on vLLM's own `/metrics`."""

from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from headkv_vllm.engine.metrics.definitions import METRICS, Metric, Reading, take_readings
from headkv_vllm.engine.platforms.platform import is_selected

Family = Counter | Gauge | Histogram


class HeadKVStatLogger(AggregateStatLoggerBase):
    """Updates our metrics in this API server. There are none if another backend serves."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        self._model_name = vllm_config.model_config.served_model_name
        if is_selected(vllm_config):
            for engine_index in engine_indexes:
                self._show(engine_index)

    @override
    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take our numbers out of `scheduler_stats` and add them to the metrics of this process."""
        if scheduler_stats is None:
            return
        for reading in take_readings(scheduler_stats):
            self._update(reading, engine_idx)

    @override
    def log_engine_initialized(self) -> None:
        """Logs nothing, because vLLM logs that the engine is ready."""

    def _update(self, reading: Reading, engine_index: int) -> None:
        sample = self._sample(reading.metric, engine_index, reading.detail)
        if isinstance(sample, Histogram):
            sample.observe(reading.value / 1e6)
        else:
            sample.inc(reading.value)

    def _show(self, engine_index: int) -> None:
        """Show 0 on `/metrics` before anything is counted."""
        for metric in METRICS.values():
            for detail in metric.label_values or ("",):
                self._sample(metric, engine_index, detail)

    def _sample(self, metric: Metric, engine_index: int, detail: str) -> Family:
        own = [detail] if metric.label else []
        return families()[metric.name].labels(self._model_name, str(engine_index), *own)


@cache
def families() -> dict[str, Family]:
    """One family per metric. A process may have several engines, but each name only once."""
    return {name: _family(metric) for name, metric in METRICS.items()}


def _family(metric: Metric) -> Family:
    arguments = (metric.name, metric.help, metric.label_names)
    if metric.kind == "counter":
        return Counter(*arguments)
    if metric.kind == "gauge":
        # Each API server has only some of the changes, so the sum over all servers is right.
        return Gauge(*arguments, multiprocess_mode="sum")
    return Histogram(*arguments, buckets=metric.buckets)
