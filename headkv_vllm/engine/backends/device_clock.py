# SPDX-License-Identifier: Apache-2.0
"""How long prompts take to compress on a device that nobody waits for."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headkv_vllm.engine.worker_table import WorkerTable


class StepClock:
    """Times one step's layers. num_prompts: [] int, how many the step completes, on the device."""

    def __init__(self, num_prompts: torch.Tensor) -> None:
        # To pinned memory: it is there when the device has come to the layers.
        self._num_prompts = num_prompts.to("cpu", non_blocking=True)
        self._layers: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Compress one layer of the step's prompts inside."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._layers.append((begin, end))

    @property
    def has_run(self) -> bool:
        """Whether any layer was measured."""
        return bool(self._layers)

    @property
    def is_done(self) -> bool:
        """Whether the device has come to the end of the last layer."""
        return self.has_run and self._layers[-1][1].query()

    def seconds(self) -> list[float]:
        """Of each prompt, when the step is done: they are compressed together, and share alike."""
        num_prompts = int(self._num_prompts)
        if num_prompts == 0:
            return []
        milliseconds = sum(begin.elapsed_time(end) for begin, end in self._layers)
        return [milliseconds / 1000 / num_prompts] * num_prompts


class DeviceClock:
    """Enters the times of each step's prompts into a table, some steps later."""

    def __init__(self, table: WorkerTable) -> None:
        self._table = table
        self._steps: deque[StepClock] = deque()

    def begin(self, num_prompts: torch.Tensor) -> StepClock:
        """Of a step that may complete prompts; see `StepClock`."""
        if self._steps and not self._steps[-1].has_run:
            self._steps.pop()  # it was only planned
        step = StepClock(num_prompts)
        self._steps.append(step)
        return step

    def collect(self) -> None:
        """Enter what is done by now."""
        while self._steps and self._steps[0].is_done:
            for seconds in self._steps.popleft().seconds():
                self._table.add_compaction(seconds)
