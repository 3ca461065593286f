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
    with JobProgress(Console(file=stream), total=100, done=10) as job:
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
    with JobProgress(Console(file=stream, force_terminal=True, width=80), total=2) as job:
        job.say("asking")
        job.advance()
        job.advance()
    assert "asking" in stream.getvalue() and "2/2" in stream.getvalue()
