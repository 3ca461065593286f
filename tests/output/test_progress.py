# SPDX-License-Identifier: Apache-2.0
"""How far a job has come is told on a terminal and without one."""

from io import StringIO

import pytest
from rich.console import Console

from headkv_vllm.output import progress
from headkv_vllm.output.progress import JobProgress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with JobProgress(Console(file=stream), [1] * 100, done=10) as job:
        job.say("starting")
        clock.now += 60  # which says nothing of how long the parts take
        job.say("asking")
        for _ in range(40):
            clock.now += 1
            job.advance()
    assert stream.getvalue().splitlines() == [
        "starting: 10 of 100, 0:00:00",
        "asking: 10 of 100, 0:01:00",
        "asking: 40 of 100, 0:01:30, about 0:01:00 left",
    ]


def test_on_a_terminal_it_is_a_bar() -> None:
    stream = StringIO()
    with JobProgress(Console(file=stream, force_terminal=True, width=80), [1] * 2) as job:
        job.say("asking")
        job.advance()
        job.advance()
    assert "asking" in stream.getvalue() and "2/2" in stream.getvalue()


def test_parts_of_different_sizes_have_a_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with JobProgress(Console(file=stream), [1, 2, 4, 4], done=1, note="1 count") as job:
        job.say("samples")
        for seconds, note in ((20, "1 count"), (40, "2 count"), (40, "3 count")):
            clock.now += seconds
            job.advance(note)
    assert stream.getvalue().splitlines() == [
        "samples: 1 of 4, 1 count, 0:00:00",
        "samples: 3 of 4, 2 count, 0:01:00, about 0:00:40 left",
        "samples: 4 of 4, 3 count, 0:01:40",
    ]
