# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine's process and watch it compress; see `engine_process`."""

import time
from pathlib import Path
from typing import Any, Literal

_seconds: list[float] = []
_rises: list[int] = []


def watch(llm: Any, what: Literal["time", "memory"]) -> None:
    """Watch every layer's compaction from now on; looking at memory takes time itself."""
    from headkv_vllm.engine.backends import cpu_attention, cpu_compaction

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        cpu_compaction.compress(*arguments)
        _seconds.append(time.perf_counter() - start)

    def weighed(*arguments: Any) -> None:
        # Linux forgets the peak of resident memory when 5 is written here.
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        cpu_compaction.compress(*arguments)
        _rises.append(_memory("VmHWM") - before)

    cpu_attention.compress = timed if what == "time" else weighed
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
