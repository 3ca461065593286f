# SPDX-License-Identifier: Apache-2.0
"""The declared metrics are what Prometheus expects of their kinds."""

import re
from typing import get_args

import pytest

from headkv_vllm.budgets.request import SkipReason
from headkv_vllm.engine.metrics.definitions import (
    COMPRESSION_SECONDS,
    ENGINE_LABELS,
    METRICS,
    PREFIX,
    SKIPPED_REQUESTS,
)


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_is_named_after_its_kind(metric):
    assert re.fullmatch(f"{PREFIX}[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_seconds") == (metric.kind == "histogram")
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert bool(metric.label) == bool(metric.label_values)
    assert metric.label_names[:2] == ENGINE_LABELS


def test_each_reason_has_a_sample_of_its_own():
    assert SKIPPED_REQUESTS.label_names == ("model_name", "engine", "reason")
    assert SKIPPED_REQUESTS.label_values == get_args(SkipReason)


def test_a_histogram_is_asked_for_by_its_parts():
    parts = ("bucket", "count", "sum")
    assert COMPRESSION_SECONDS.sample_names == tuple(
        f"headkv:compression_seconds_{p}" for p in parts
    )
    assert COMPRESSION_SECONDS.buckets == tuple(sorted(set(COMPRESSION_SECONDS.buckets)))
    assert SKIPPED_REQUESTS.sample_names == ("headkv:skipped_requests_total",)
