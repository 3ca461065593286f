# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine and time the parts of a step; see `engine_process`."""

import time
from collections import defaultdict
from importlib import import_module
from typing import Any, Final

PARTS: Final = {
    "metadata": (
        "headkv_vllm.engine.attention.cpu:HeadKVCpuMetadataBuilder.build",
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build",
    ),
    "attention, all layers": (
        "headkv_vllm.engine.attention.cpu:HeadKVCpuImpl.forward",
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward",
    ),
    "of it kernels": ("vllm._custom_ops:cpu_attention_with_kv_cache",),
    "cache writes, all layers": ("vllm._custom_ops:cpu_attn_reshape_and_cache",),
    "scheduler": (
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    ),
}
"""The functions of each part, as module:name."""

_seconds: dict[str, float] = defaultdict(float)


def watch(llm: Any, *parts: str) -> None:
    """Measure the time of `parts`, by default all parts, from now on."""
    for part in parts or PARTS:
        for place in PARTS[part]:
            _time(part, place)


def restart(llm: Any) -> None:
    """Forget the measurements so far."""
    _seconds.clear()


def seconds(llm: Any) -> dict[str, float]:
    """The seconds of each part since `restart`."""
    return dict(_seconds)


def _time(part: str, place: str) -> None:
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    function = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **named)
        _seconds[part] += time.perf_counter() - start
        return result

    setattr(owner, name, timed)
