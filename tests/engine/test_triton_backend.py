# SPDX-License-Identifier: Apache-2.0
"""The Triton backend, without a GPU: in a real engine, and by vLLM's own check of backends."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionType

from headkv_vllm.engine.backends.triton import HeadKVTritonBackend
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples

pytest.importorskip("triton")
ENGINE = {
    "model": str(checkpoint_path()),
    "attention_backend": "HEADKV",
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 16,
    "max_model_len": 1024,
    "max_num_batched_tokens": 128,
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    },
    "additional_config": {"headkv": {"budget": 64}},
}


def served(backend: str, batches: list[Any]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.triton_on_cpu", backend],
        input=json.dumps({"engine": ENGINE, "batches": batches}),
        text=True,
        capture_output=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_tokens_as_from_the_cpu_backend() -> None:
    """Prompts of different lengths in chunks beside others' decodes, budgets, policies, none at
    all, a prompt whose blocks are cached, drafts, and requests that are preempted and resumed.
    """
    short, long = (
        next(iter(generate_samples("multi-query", length, 1, seed=3))).prompt
        for length in (220, 300)
    )
    mixed = [
        (long, 7, None),
        (short, 10, {"headkv_budget": 0}),
        (short + " ?", 6, {"headkv_budget": 40, "headkv_policy": "streaming"}),
    ]
    cached = [(long, 7, {"headkv_budget": 96})]
    resumed = [(short, 12, None), (short + " ?", 12, {"headkv_budget": 0})]
    batches = [(mixed, 0), (cached, 0), (resumed, 9)]
    triton, cpu = (served(backend, batches) for backend in ("triton", "cpu"))
    assert triton["impls"] == ["HeadKVTritonImpl"] and cpu["impls"] == ["HeadKVCpuImpl"]
    assert triton["answers"] == cpu["answers"]


def reasons(**changes: Any) -> list[str]:
    """Why vLLM would not serve with it, on an H100."""
    asked: dict[str, Any] = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": DeviceCapability(9, 0),
        "attn_type": AttentionType.DECODER,
    }
    return HeadKVTritonBackend.validate_configuration(**(asked | changes))


def test_vllm_finds_nothing_wrong_with_it() -> None:
    for block_size in (16, 32, 128):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert reasons(block_size=block_size, dtype=dtype) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_size": 24}, "block_size not supported"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype not supported"),
        ({"use_mla": True}, "MLA not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"has_sliding_window": True}, "sliding window not supported"),
        (
            {"attn_type": AttentionType.ENCODER},
            f"attention type {AttentionType.ENCODER} not supported",
        ),
        ({"use_non_causal": True}, "non-causal attention not supported"),
        ({"use_kv_connector": True}, "KV connector not supported"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_vllm_refuses_it_where_it_does_not_do(changes: dict[str, Any], reason: str) -> None:
    assert reasons(**changes) == [reason]
