# SPDX-License-Identifier: Apache-2.0
"""The backends for GPUs, without one: in a real engine, and by vLLM's own check of backends."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends import fa_utils

from headkv_vllm.engine.attention.flash_attn import HeadKVFlashAttentionBackend
from headkv_vllm.engine.attention.triton import HeadKVTritonBackend
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples

pytest.importorskip("triton")
ENGINE = {
    "model": str(checkpoint_path()),
    "attention_backend": "HEADKV",
    "dtype": "float32",
    "block_size": 16,
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,
    "kv_cache_memory_bytes": 2**24,
    "additional_config": {"headkv": {"budget": 64}},
}
DRAFTS = {
    "compilation_config": {"mode": 0, "cudagraph_mode": "NONE"},
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    },
}
GRAPHS = {
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4],
    }
}


def served(engine: str, batches: list[Any], **flags: Any) -> Any:
    """engine: what to tell the program, backend and manner."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.helpers.gpu_backend_on_cpu", *engine.split()],
        input=json.dumps({"engine": ENGINE | flags, "batches": batches}),
        text=True,
        capture_output=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


SHORT, LONG = (
    next(iter(generate_samples("multi-query", length, 1, seed=3))).prompt for length in (220, 300)
)
MIXED = [
    (LONG, 7, None),
    (SHORT, 10, {"headkv_budget": 0}),
    (SHORT + " ?", 6, {"headkv_budget": 40, "headkv_policy": "streaming"}),
    ("? " + SHORT, 6, {"headkv_budget": 40, "headkv_policy": "headkv_ada"}),
]
RESUMED = [(SHORT, 12, {"headkv_policy": "adakv"}), (SHORT + " ?", 12, {"headkv_budget": 0})]
NUM_COMPRESSIONS = [3, 4]  # after the first batches; when the last is preempted steps decide
BATCHES = [(MIXED, 0), ([(LONG, 7, {"headkv_budget": 96})], 0), (RESUMED, 9)]


@pytest.fixture(scope="module")
def expected() -> Any:
    found = served("cpu", BATCHES, **DRAFTS)
    assert found["impls"] == ["HeadKVCpuImpl"]
    assert found["num_compressions"][:2] == NUM_COMPRESSIONS
    return found["answers"]


IMPLS = {"triton": ["HeadKVTritonImpl"], "flash_attn": ["HeadKVFlashAttentionImpl"]}


def assert_as_on_cpus(engine: str, found: Any, answers: Any) -> None:
    """And nothing was compiled that the warm-up might have compiled."""
    backend, version = engine.split()
    assert found["impls"] == IMPLS[backend]
    assert found["runner_is_v2"] == (version == "v2")
    assert found["compiled_while_serving"] == []
    assert found["num_compressions"][:2] == NUM_COMPRESSIONS
    assert found["answers"] == answers


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["triton v1", "flash_attn v2"])
def test_the_same_tokens_as_from_the_cpu_backend(expected: Any, engine: str) -> None:
    """Prompts of different lengths in chunks beside others' decodes, budgets, policies, none at
    all, a prompt whose blocks are cached, drafts, and requests that are preempted and resumed.

    Before, V2 has its own warm-up, whose rows are none of ours.
    """
    found = served(engine, BATCHES, **DRAFTS)
    assert_as_on_cpus(engine, found, expected)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["flash_attn v1", "triton v2"])
def test_graphs_give_the_same_tokens(expected: Any, engine: str) -> None:
    """Steps of single tokens are graphs, captured before there is a request."""
    found = served(engine, BATCHES, **GRAPHS)
    assert found["scheduler"] == "HeadKVAsyncScheduler" and found["num_replays"] > 10
    assert_as_on_cpus(engine, found, expected)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fp8_entries(expected: Any) -> None:
    """They are coarse: of the tokens only the answers' are those of others. All are those of a
    CPU backend that rounds what it writes, of which `benchmarks.fp8_accuracy` asks far more. The
    kernel that stores is replaced by its twin here, for the interpreter does not round as GPUs do;
    and no graph holds a twin.
    """
    asked = [([(SHORT, 8, {"headkv_budget": 0}), (LONG, 8, None)], 0)]
    found = served("triton v2", asked, **DRAFTS, kv_cache_dtype="fp8")
    assert found["cache_dtypes"] == ["torch.uint8"]
    full, compressed = found["answers"][0]
    assert full[:4] == expected[0][1][:4] and compressed[:4] == expected[0][0][:4]
    assert found["answers"] == served("cpu rounded", asked)["answers"]


def reasons(backend: Any = HeadKVTritonBackend, **changes: Any) -> list[str]:
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
    found: list[str] = backend.validate_configuration(**(asked | changes))
    return found


def test_vllm_finds_nothing_wrong_with_it() -> None:
    for block_size in (16, 32, 128):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert reasons(block_size=block_size, dtype=dtype) == []
    assert reasons(kv_cache_dtype="fp8") == []


def test_flash_attention_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there_is_none = ["head_size not supported"]
    assert reasons(HeadKVFlashAttentionBackend) == there_is_none
    monkeypatch.setattr(fa_utils, "get_flash_attn_version", lambda head_size: 3)
    assert reasons(HeadKVFlashAttentionBackend) == []
    for changes in (
        {"kv_cache_dtype": "fp8"},
        {"dtype": torch.float32},
        {"head_size": 100},
        {"device_capability": DeviceCapability(7, 5)},
    ):
        assert len(reasons(HeadKVFlashAttentionBackend, **changes)) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_size": 24}, "block_size not supported"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype not supported"),
        (
            {"kv_cache_dtype": "fp8", "device_capability": DeviceCapability(8, 0)},
            "an fp8 KV cache needs a compute capability of at least 8.9",
        ),
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
