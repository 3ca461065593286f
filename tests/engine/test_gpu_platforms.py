# SPDX-License-Identifier: Apache-2.0
"""What vLLM makes of the flag on GPUs, as far as that can be seen without one.

vLLM's own platforms are asked in a process of their own. Only what needs a GPU to answer is
answered for it: which one it is, and what its compiled extension and FlashAttention are.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from headkv_vllm.engine.names import FLASH_ATTN_BACKEND_PATH, TRITON_BACKEND_PATH
from tests.engine.helpers.bookkeeping_engine import write_model

OURS = "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


def configured(platform: str, capability: tuple[int, int], **asked: Any) -> dict[str, Any]:
    """What `helpers.gpu_configuration` prints, or what it ends with. asked: of the engine."""
    known = {"capability": capability, "engine": asked}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.helpers.gpu_configuration", platform],
        input=json.dumps(known),
        text=True,
        capture_output=True,
        timeout=300,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("platform", "flags", "backend"),
    [
        ("cuda", {}, FLASH_ATTN_BACKEND_PATH),
        ("cuda", {"dtype": "float32"}, TRITON_BACKEND_PATH),
        ("cuda", {"kv_cache_dtype": "fp8"}, TRITON_BACKEND_PATH),
        ("rocm", {}, TRITON_BACKEND_PATH),
    ],
    ids=["CUDA", "CUDA in float32", "CUDA with fp8", "ROCm"],
)
def test_the_flag_is_served(model: str, platform: str, flags: dict[str, Any], backend: str) -> None:
    assert configured(platform, (9, 0), model=model, **flags) == {
        "platform": f"HeadKV{platform.capitalize()}Platform",
        "backend": backend,
        "block_size": 16,
        "scheduler": OURS,
    }


NGRAM = {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 2}


@pytest.mark.parametrize(
    ("capability", "flags", "reason"),
    [
        ((9, 0), {"block_size": 24}, "--block-size (24): it must be a multiple of 16"),
        ((9, 0), {"kv_cache_dtype": "fp8_e5m2"}, "('fp8_e5m2'): use fp8, fp8_e4m3"),
        ((9, 0), {"additional_config": {"headkv": {"window": 1}}}, "it must be at least 2"),
        (
            (9, 0),
            {"additional_config": {"headkv": {"window": 300}}},
            "with this platform, model and speculation: it must be at most",
        ),
        ((9, 0), {"speculative_config": NGRAM}, "7 speculative tokens on this platform: use at"),
        ((8, 0), {"kv_cache_dtype": "fp8"}, "needs a compute capability of at least 8.9"),
        ((7, 5), {"dtype": "float16"}, "compute capability not supported"),
    ],
)
def test_what_is_not_is_refused(
    model: str, capability: tuple[int, int], flags: dict[str, Any], reason: str
) -> None:
    assert reason in configured("cuda", capability, model=model, **flags)["error"]
