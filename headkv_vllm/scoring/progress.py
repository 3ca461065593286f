# SPDX-License-Identifier: Apache-2.0
"""How far a run has come: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from headkv_vllm.scoring.journal import SampleResult
from headkv_vllm.scoring.run import accepted

SPEED_PERIOD: Final = 3600.0
"""Seconds by which the time that is left is estimated. By default rich forgets what is older than
30, and a sample can take longer than that."""
LINE_EVERY: Final = 15.0
"""Seconds between two lines where there is no terminal."""


class SampleProgress:
    """Counts tokens, which samples of different lengths differ in, and shows samples."""

    def __init__(
        self, console: Console, lengths: Sequence[int], done: Sequence[SampleResult] = ()
    ) -> None:
        """lengths: tokens of all samples. done: what an earlier run has measured of them."""
        self._console, self._lengths = console, lengths
        self._num_done, self._num_right = len(done), len(accepted(done))
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.fields[done]}}/{len(lengths)}"),
            TextColumn("{task.fields[right]} count"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=SPEED_PERIOD,
        )
        self._task = self._progress.add_task(
            "samples",
            total=sum(lengths),
            completed=sum(lengths[: len(done)]),
            done=self._num_done,
            right=self._num_right,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, result: SampleResult) -> None:
        """One more sample is done."""
        self._num_done += 1
        self._num_right += len(accepted([result]))
        self._progress.update(
            self._task,
            advance=self._lengths[result.index],
            done=self._num_done,
            right=self._num_right,
        )
        if not self._console.is_terminal:
            self._line()

    def _line(self) -> None:
        now, is_last = time.monotonic(), self._num_done == len(self._lengths)
        if now - self._last_line < LINE_EVERY and not is_last:
            return
        self._last_line = now
        left = self._progress.tasks[0].time_remaining
        rest = "" if left is None or is_last else f", about {left:.0f} s left"
        self._console.print(
            f"{self._num_done} of {len(self._lengths)} samples, {self._num_right} count{rest}",
            highlight=False,
            soft_wrap=True,
        )
