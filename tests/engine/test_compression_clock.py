# SPDX-License-Identifier: Apache-2.0
"""Times of a device that is some steps behind the host, and of a CPU."""

import time
from typing import ClassVar

import pytest
import torch

from headkv_vllm.engine.attention.compression_clock import DeviceClock, HostClock
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts


class Event:
    """Each takes the device a millisecond more than the last, when it comes there."""

    num_recorded: ClassVar[int] = 0
    num_reached: ClassVar[int] = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.num_recorded += 1
        self.number = Event.num_recorded

    def query(self) -> bool:
        return self.number <= Event.num_reached

    def elapsed_time(self, later: "Event") -> float:
        assert later.query(), "raises on a device"
        return later.number * (later.number + 1) / 2 - self.number * (self.number + 1) / 2


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> WorkerCounts:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "num_recorded", 0)
    monkeypatch.setattr(Event, "num_reached", 0)
    return WorkerCounts.private()


def run(clock: DeviceClock, num_prompts: int, num_parts: int) -> None:
    for _ in range(num_parts):
        with clock.measuring():
            pass
    clock.finish(num_prompts)


def test_times_are_entered_when_the_device_has_come_to_the_last_layers(table: WorkerCounts) -> None:
    clock = DeviceClock(table)
    run(clock, num_prompts=2, num_parts=2)
    for Event.num_reached in range(4):
        clock.collect()
        assert table.num_compressions == 0
    Event.num_reached = 4
    clock.collect()
    clock.collect()
    # 2 + 4 milliseconds, for two prompts
    assert table.compressions(0, table.num_compressions) == [3000, 3000]


def test_steps_that_only_warm_up_are_left_out(table: WorkerCounts) -> None:
    clock = DeviceClock(table)
    with clock.stopped():
        run(clock, num_prompts=1, num_parts=1)
    run(clock, num_prompts=1, num_parts=1)
    Event.num_reached = Event.num_recorded
    clock.collect()
    assert table.compressions(0, table.num_compressions) == [4000]


def test_on_a_cpu_prompts_share_what_all_layers_took(table: WorkerCounts) -> None:
    clock = HostClock(table)
    for _ in range(2):
        with clock.measuring():
            time.sleep(0.01)
    clock.finish(num_prompts=2)
    first, second = table.compressions(0, table.num_compressions)
    assert first == second >= 10_000
