# SPDX-License-Identifier: Apache-2.0
"""Engines that tests share: each kind is started once, at its first use."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle import checkpoint_path

COMMON: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 4608,
    "max_num_batched_tokens": 8192,
    "block_size": 16,
    "seed": 0,
    "kv_cache_memory_bytes": 2**28,
}
# About ten are kept: what the shell grants each is too much, and vLLM heeds it more.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": None}


class Engines:
    """Starts engines on demand and keeps them until the session ends."""

    def __init__(self) -> None:
        self._running: dict[str, EngineProcess] = {}

    def stock(self, **arguments: Any) -> EngineProcess:
        """Stock vLLM with its own CPU backend, on the needle model."""
        return self._get({"attention_backend": "CPU_ATTN", **arguments})

    def headkv(self, settings: dict[str, Any], **arguments: Any) -> EngineProcess:
        """The same engine with our backend and `settings`."""
        ours = {"attention_backend": "HEADKV", "additional_config": {"headkv": settings}}
        return self._get({**ours, **arguments})

    def end(self, engine: EngineProcess) -> None:
        """Stop an engine that no other test uses, so that not all are in memory at once."""
        (key,) = [key for key, running in self._running.items() if running is engine]
        self._running.pop(key).stop()

    def stop(self) -> None:
        for engine in self._running.values():
            engine.stop()

    def _get(self, arguments: dict[str, Any]) -> EngineProcess:
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._running:
            model = {"model": str(checkpoint_path())}
            self._running[key] = EngineProcess(ENVIRONMENT, **{**model, **COMMON, **arguments})
        return self._running[key]


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    running = Engines()
    yield running
    running.stop()
