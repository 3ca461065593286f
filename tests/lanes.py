# SPDX-License-Identifier: Apache-2.0
"""Tests side by side (pytest-xdist): which cores and which tests are one worker's."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ALL_CORES = os.sched_getaffinity(0)
SHARED_SERVERS = ("engines", "guarded_server")
"""Fixtures of a session: what shares them stays together, for each worker would start its own."""


def own_cores(worker: Mapping[str, Any]) -> set[int]:
    """Of this worker's. vLLM binds each engine to the first cores that it sees."""
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    return set(sorted(ALL_CORES)[number::count]) or ALL_CORES


def keep_together(items: Sequence[pytest.Item]) -> None:
    """Files stay whole, and those that share a server together."""
    groups: dict[Path, str] = {}
    for item in items:
        shared = (name for name in SHARED_SERVERS if name in getattr(item, "fixturenames", ()))
        own = f"{item.path.parent.name}-{item.path.stem}"
        groups[item.path] = next(shared, groups.get(item.path, own))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
