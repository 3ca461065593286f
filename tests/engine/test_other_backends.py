# SPDX-License-Identifier: Apache-2.0
"""Where headkv is not asked for, vLLM is what it is without this package."""

import random
from dataclasses import fields
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle import checkpoint_path
from tests.engine.helpers import inside

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

ARGUMENTS = {
    "model": str(checkpoint_path()),
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 4608,
    "seed": 0,
}


def described(llm: Any) -> dict[str, object]:
    """What a plugin could have changed, and the platform's class, which this one does change."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    core = llm.llm_engine.engine_core.engine_core
    config = core.vllm_config
    (group,) = core.scheduler.kv_cache_config.kv_cache_groups
    runner = core.model_executor.driver_worker.worker.model_runner
    (attention_group,) = runner.attn_groups[0]
    return {
        "config": {
            field.name: str(getattr(config, field.name))
            for field in fields(config)
            if field.name != "instance_id"
        },
        "block_size": config.cache_config.block_size,
        "scheduler": type(core.scheduler),
        "managers": [
            type(m) for m in core.scheduler.kv_cache_manager.coordinator.single_type_managers
        ],
        "spec": group.kv_cache_spec,
        "backend": attention_group.backend,
        "kv_cache": [(cache.shape, cache.stride()) for cache in runner.kv_caches],
        "platform": type(current_platform).__name__,
        "headkv is known": "HEADKV" in AttentionBackendEnum.__members__,
    }


def run(environment: dict[str, str]) -> tuple[dict[str, object], list[inside.TokenIds]]:
    engine = EngineProcess(environment, **ARGUMENTS)
    rng = random.Random(3)
    prompts = [rng.choices(range(4, 448), k=length) for length in (1, 100, 1000, 2500)]
    try:
        return engine.call(described), engine.call(inside.generate, prompts, 24, ignore_eos=True)
    finally:
        engine.stop()


def test_stock_vllm_is_the_same_with_and_without_the_plugin() -> None:
    installed, tokens = run({})
    disabled, expected = run({"VLLM_PLUGINS": ""})
    assert installed.pop("platform") == "HeadKVCpuPlatform"
    assert disabled.pop("platform") == "CpuPlatform"
    assert (installed.pop("headkv is known"), disabled.pop("headkv is known")) == (True, False)
    assert installed == disabled
    assert installed["block_size"] == 128
    assert tokens == expected
