# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it measures."""

import io

import pytest
from rich.console import Console

from headkv_vllm.scoring import progress as progress_module
from headkv_vllm.scoring.journal import SampleResult
from headkv_vllm.scoring.progress import SampleProgress


def result(index: int, share: float = 1.0) -> SampleResult:
    return SampleResult(index=index, share=share, said="", scores=((0.0,),))


def test_samples_that_take_minutes_have_a_remaining_time() -> None:
    progress = SampleProgress(Console(file=io.StringIO()), [1000] * 4)
    now = 0.0
    progress._progress.get_time = lambda: now
    progress._progress.tasks[0].start_time = 0.0
    for done in (1, 2):
        now = done * 300.0
        progress.show(result(done - 1))
    assert progress._progress.tasks[0].time_remaining == 600


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    out = io.StringIO()
    with SampleProgress(Console(file=out, width=20), [1000] * 40, [result(0)]) as progress:
        for index in range(1, 40):
            now += 4.0
            progress.show(result(index, share=index % 2))
    lines = out.getvalue().splitlines()
    assert len(lines) == 39 // 4 + 1
    assert lines[0].startswith("5 of 40 samples, 3 count, about 1") and lines[0].endswith(" s left")
    assert lines[-1] == "40 of 40 samples, 21 count"


def test_on_a_terminal_there_is_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with SampleProgress(console, [1000] * 2) as progress:
        progress.show(result(0))
        progress.show(result(1, share=0.5))
    assert "2/2" in out.getvalue() and "1 count" in out.getvalue()
    assert "of 2 samples" not in out.getvalue()
