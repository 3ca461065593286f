# SPDX-License-Identifier: Apache-2.0
"""How far a long job has come: a bar on a terminal, and elsewhere a line now and then."""

import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_PER_LINE: Final = 30.0
PARTS_OF_SPEED: Final = 200
"""The time that is left is estimated by the last so many parts."""


class JobProgress:
    """Counts the parts of a job that are done; a context manager.

    total: parts in all. done: those that were done before.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self._console, self._total, self._done, self._text = console, total, done, ""
        self._start, self._next_line = time.monotonic(), 0.0
        self._last: deque[float] = deque(maxlen=PARTS_OF_SPEED)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done)

    def say(self, text: str) -> None:
        """What is being done now. The parts that follow have a speed of their own."""
        self._text = text
        self._last.clear()
        self._bar.update(self._task, description=text)
        self._line()

    def advance(self) -> None:
        """One part more is done."""
        self._done += 1
        self._last.append(time.monotonic())
        self._bar.update(self._task, advance=1)
        self._line()

    def _line(self) -> None:
        now = time.monotonic()
        elapsed = now - self._start
        if self._console.is_terminal or elapsed < self._next_line:
            return
        self._next_line = elapsed + SECONDS_PER_LINE
        text = f"{self._text}: {self._done} of {self._total}, {_shown(elapsed)}"
        if len(self._last) > 1:
            per_part = (now - self._last[0]) / (len(self._last) - 1)
            text += f", about {_shown((self._total - self._done) * per_part)} left"
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
