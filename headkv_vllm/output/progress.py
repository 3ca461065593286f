# SPDX-License-Identifier: Apache-2.0
"""Progress of a long job: a bar on a terminal, and a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_PER_LINE: Final = 30.0
PARTS_OF_SPEED: Final = 200
"""The remaining time is estimated from the speed of this many parts, the latest ones."""
SPEED_PERIOD: Final = 3600.0
"""Seconds that the bar's estimate looks back. rich's default of 30 s can be less than one part."""


class JobProgress:
    """Counts the parts of a job that are done. A context manager.

    sizes: the work of each part, in any unit. done: the first parts that an earlier run did.
    note: a text about the parts that are done.
    """

    def __init__(
        self, console: Console, sizes: Sequence[float], done: int = 0, note: str = ""
    ) -> None:
        self._console, self._sizes, self._done = console, sizes, done
        self._text, self._note = "", note
        self._start, self._next_line = time.monotonic(), 0.0
        self._work_done: float = sum(sizes[:done])
        self._latest: deque[tuple[float, float]] = deque(maxlen=PARTS_OF_SPEED)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.fields[done]}}/{len(sizes)}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=SPEED_PERIOD,
        )
        self._task = self._bar.add_task("", total=sum(sizes), done=done, note=note)

        self._bar.update(self._task, completed=self._work_done)

    def say(self, text: str) -> None:
        """Show what the job does now. The parts that follow have a speed of their own."""
        self._text = text
        self._latest.clear()
        self._bar.update(self._task, description=text)
        self._line()

    def advance(self, note: str | None = None) -> None:
        """Count one more part. note: replaces the text about the parts that are done."""
        self._work_done += self._sizes[self._done]
        self._done += 1
        self._note = self._note if note is None else note
        self._latest.append((time.monotonic(), self._work_done))
        self._bar.update(self._task, completed=self._work_done, done=self._done, note=self._note)
        self._line()

    def _line(self) -> None:
        now = time.monotonic()
        elapsed, is_last = now - self._start, self._done == len(self._sizes)
        if self._console.is_terminal or (elapsed < self._next_line and not is_last):
            return
        self._next_line = elapsed + SECONDS_PER_LINE
        parts = [f"{self._text}: {self._done} of {len(self._sizes)}", self._note, _shown(elapsed)]
        if len(self._latest) > 1 and not is_last:
            start, work_before = self._latest[0]
            seconds_per_work = (now - start) / (self._work_done - work_before)
            left = (sum(self._sizes) - self._work_done) * seconds_per_work
            parts.append(f"about {_shown(left)} left")
        text = ", ".join(part for part in parts if part)
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
