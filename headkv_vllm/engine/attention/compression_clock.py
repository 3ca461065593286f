# SPDX-License-Identifier: Apache-2.0
"""How long prompts take to compress; `cache.compression.Clock` on a CPU and on a GPU.

Prompts that a step compresses together share its time evenly.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

from headkv_vllm.engine.metrics.worker_counts import WorkerCounts


class HostClock:
    """Of one step, whose layers are computed when their call returns."""

    def __init__(self, table: WorkerCounts) -> None:
        self._table, self._seconds = table, 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Compress some layers of the step's prompts inside."""
        start = perf_counter()
        yield
        self._seconds += perf_counter() - start

    def finish(self, num_prompts: int) -> None:
        """All layers of that many prompts are compressed."""
        for _ in range(num_prompts):
            self._table.add_compression(self._seconds / num_prompts)


@dataclass
class _DeviceStep:
    """events: begin and end of each measured part. num_prompts: 0 until the step is finished."""

    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    num_prompts: int = 0


class DeviceClock:
    """Of all steps. The device's times are read some steps later, so that nobody waits for it."""

    def __init__(self, table: WorkerCounts) -> None:
        self._table = table
        self._step = _DeviceStep()
        self._finished: deque[_DeviceStep] = deque()
        self._is_stopped = False

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Compress some layers of the step's prompts inside."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._step.events.append((begin, end))

    def finish(self, num_prompts: int) -> None:
        """All layers of that many prompts have been launched."""
        self._step.num_prompts = num_prompts
        if not self._is_stopped:
            self._finished.append(self._step)
        self._step = _DeviceStep()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Steps that finish inside are not entered."""
        self._is_stopped = True
        yield
        self._is_stopped = False

    def collect(self) -> None:
        """Enter the steps that the device has completed."""
        while self._finished and self._finished[0].events[-1][1].query():
            step = self._finished.popleft()
            milliseconds = sum(begin.elapsed_time(end) for begin, end in step.events)
            for _ in range(step.num_prompts):
                self._table.add_compression(milliseconds / 1000 / step.num_prompts)
