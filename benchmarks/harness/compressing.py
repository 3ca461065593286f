# SPDX-License-Identifier: Apache-2.0
"""Functions that run in an engine's process and measure compression; see `engine_process`."""

import time
from pathlib import Path
from typing import Any, Literal

_seconds: list[float] = []
_rises: list[int] = []


def watch(llm: Any, what: Literal["time", "memory"]) -> None:
    """Measure the time or the memory of each prompt's compression from now on.

    Measuring memory takes time itself, so the two are not measured together.
    """
    from headkv_vllm.cache.compression import Compressor

    compress = getattr(Compressor.compress, "watched", Compressor.compress)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        kept = compress(*arguments)
        _seconds.append(time.perf_counter() - start)
        return kept

    def weighed(*arguments: Any) -> Any:
        # Writing 5 resets the peak of resident memory on Linux.
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        kept = compress(*arguments)
        _rises.append(_memory("VmHWM") - before)
        return kept

    watching: Any = timed if what == "time" else weighed
    watching.watched = compress
    Compressor.compress = watching  # type: ignore[method-assign]
    _seconds.clear()
    _rises.clear()


def take(llm: Any) -> tuple[float, int]:
    """The seconds since the last call, and the maximum rise of resident memory in bytes."""
    taken = sum(_seconds), max(_rises, default=0)
    _seconds.clear()
    _rises.clear()
    return taken


def _memory(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
