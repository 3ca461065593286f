# SPDX-License-Identifier: Apache-2.0
"""Times of a device that is some steps behind the host."""

from typing import ClassVar

import pytest
import torch

from headkv_vllm.engine.backends.device_clock import DeviceClock, StepClock
from headkv_vllm.engine.worker_table import WorkerTable


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
def table(monkeypatch: pytest.MonkeyPatch) -> WorkerTable:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "num_recorded", 0)
    monkeypatch.setattr(Event, "num_reached", 0)
    return WorkerTable.private()


def run(step: StepClock, num_layers: int) -> None:
    for _ in range(num_layers):
        with step.measuring():
            pass


def test_times_are_entered_when_the_device_has_come_to_the_last_layer(table: WorkerTable) -> None:
    clock = DeviceClock(table)
    run(clock.begin(torch.tensor(2)), num_layers=2)
    for Event.num_reached in range(4):
        clock.collect()
        assert table.num_compactions == 0
    Event.num_reached = 4
    clock.collect()
    clock.collect()
    # 2 + 4 milliseconds, for two prompts
    assert table.compactions(0, table.num_compactions) == [3000, 3000]


def test_steps_that_complete_nothing_or_do_not_run_are_left_out(table: WorkerTable) -> None:
    clock = DeviceClock(table)
    clock.begin(torch.tensor(7))  # only planned
    run(clock.begin(torch.tensor(0)), num_layers=1)
    run(clock.begin(torch.tensor(1)), num_layers=1)
    clock.begin(torch.tensor(7))
    Event.num_reached = Event.num_recorded
    clock.collect()
    assert table.compactions(0, table.num_compactions) == [4000]
