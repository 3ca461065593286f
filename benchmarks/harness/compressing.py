# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine's process and watch it compress; see `engine_process`."""

import time
from pathlib import Path
from typing import Any, Literal

_seconds: list[float] = []
_rises: list[int] = []


def watch(llm: Any, what: Literal["time", "memory"]) -> None:
    """Watch every prompt's compression from now on; looking at memory takes time itself."""
    from headkv_vllm.cache.compression import Compressor

    compress = getattr(Compressor.compress, "watched", Compressor.compress)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        kept = compress(*arguments)
        _seconds.append(time.perf_counter() - start)
        return kept

    def weighed(*arguments: Any) -> Any:
        # Linux forgets the peak of resident memory when 5 is written here.
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
    """Since the last call: the seconds, and the most bytes that resident memory rose by."""
    taken = sum(_seconds), max(_rises, default=0)
    _seconds.clear()
    _rises.clear()
    return taken


def _memory(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
