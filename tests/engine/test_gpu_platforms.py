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

from headkv_vllm.engine.names import FLASH_ATTN_BACKEND_PATH, PLATFORM_PATHS, TRITON_BACKEND_PATH
from tests.engine.bookkeeping_engine import write_model

OURS = "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


def configured(capability: tuple[int, int], asked: dict[str, Any]) -> dict[str, Any]:
    """What `tests.engine.gpu_configuration` prints, or what it ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.gpu_configuration"],
        input=json.dumps({"capability": capability, "engine": asked}),
        text=True,
        capture_output=True,
        timeout=300,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("capability", "flags", "backend"),
    [
        ((9, 0), {}, FLASH_ATTN_BACKEND_PATH),
        ((9, 0), {"kv_cache_dtype": "fp8"}, TRITON_BACKEND_PATH),
        ((7, 5), {"dtype": "float16"}, TRITON_BACKEND_PATH),
    ],
    ids=["Hopper", "fp8", "Turing"],
)
def test_the_flag_is_served(
    model: str, capability: tuple[int, int], flags: dict[str, Any], backend: str
) -> None:
    found = configured(capability, {"model": model, **flags})
    assert found == {
        "platform": PLATFORM_PATHS["vllm.platforms.cuda.CudaPlatform"].rpartition(".")[2],
        "backend": backend,
        "block_size": 16,
        "scheduler": OURS,
    }


@pytest.mark.parametrize(
    ("capability", "flags", "reason"),
    [
        ((9, 0), {"block_size": 24}, "--block-size (24): it must be a multiple of 16"),
        (
            (9, 0),
            {"kv_cache_dtype": "fp8_e5m2"},
            "('fp8_e5m2'): use fp8, fp8_e4m3",
        ),
        (
            (9, 0),
            {"additional_config": {"headkv": {"window": 1}}},
            "does not support window=1 on this platform: it must be at least 2",
        ),
        ((8, 0), {"kv_cache_dtype": "fp8"}, "needs a compute capability of at least 8.9"),
    ],
)
def test_what_is_not_is_refused(
    model: str, capability: tuple[int, int], flags: dict[str, Any], reason: str
) -> None:
    assert reason in configured(capability, {"model": model, **flags})["error"]
