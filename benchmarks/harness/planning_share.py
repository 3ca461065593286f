# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine's process and time its metadata; see `engine_process`."""

import time
from typing import Any

_seconds: list[float] = []


def watch(llm: Any) -> None:
    """Take the time of every step's metadata from now on."""
    from headkv_vllm.engine.backends.cpu_metadata import HeadKVCpuMetadataBuilder

    build = HeadKVCpuMetadataBuilder.build

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        metadata = build(*arguments, **named)
        _seconds.append(time.perf_counter() - start)
        return metadata

    HeadKVCpuMetadataBuilder.build = timed  # type: ignore[method-assign]


def seconds(llm: Any) -> list[float]:
    """One for each step."""
    return list(_seconds)
