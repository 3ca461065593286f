# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine's process and watch it compress; see `engine_process`."""

import time
from pathlib import Path
from typing import Any

_seconds: list[float] = []
_resident: list[int] = []


def watch(llm: Any) -> None:
    """Take the time of every layer's compaction from now on."""
    from headkv_vllm.engine.backends import cpu_attention

    compress = cpu_attention.compress

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        compress(*arguments)
        _seconds.append(time.perf_counter() - start)

    cpu_attention.compress = timed


def begin(llm: Any) -> None:
    """Forget what was seen so far, and the peak of resident memory."""
    _seconds.clear()
    # Linux forgets the peak of resident memory when 5 is written here.
    Path("/proc/self/clear_refs").write_text("5")
    _resident[:] = [_memory("VmRSS")]


def end(llm: Any) -> tuple[float, int]:
    """Since `begin`: seconds of compaction, and the bytes by which resident memory rose."""
    return sum(_seconds), _memory("VmHWM") - _resident[0]


def _memory(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
