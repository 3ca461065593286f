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

pytestmark = pytest.mark.slow

NGRAM = {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 2}
SERVED = {
    "CUDA": ("cuda", {}, FLASH_ATTN_BACKEND_PATH),
    "CUDA in float32": ("cuda", {"dtype": "float32"}, TRITON_BACKEND_PATH),
    "CUDA with fp8": ("cuda", {"kv_cache_dtype": "fp8"}, TRITON_BACKEND_PATH),
    "ROCm": ("rocm", {}, TRITON_BACKEND_PATH),
}
"""The platform, the engine's arguments, and the backend that serves."""
REFUSED = {
    "block size": ((9, 0), {"block_size": 24}, "--block-size (24): it must be a multiple of 16"),
    "e5m2": ((9, 0), {"kv_cache_dtype": "fp8_e5m2"}, "('fp8_e5m2'): use fp8, fp8_e4m3"),
    "small window": (
        (9, 0),
        {"additional_config": {"headkv": {"window": 1}}},
        "it must be at least 2",
    ),
    "large window": (
        (9, 0),
        {"additional_config": {"headkv": {"window": 300}}},
        "with this platform, model and speculation: it must be at most",
    ),
    "drafts": (
        (9, 0),
        {"speculative_config": NGRAM},
        "7 speculative tokens on this platform: use at",
    ),
    "fp8": ((8, 0), {"kv_cache_dtype": "fp8"}, "needs a compute capability of at least 8.9"),
    "old GPU": ((7, 5), {"dtype": "float16"}, "compute capability not supported"),
}
"""The compute capability, the engine's arguments, and the reason."""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case becomes, by its name."""
    model = str(write_model(tmp_path_factory.mktemp("model")))
    cases: dict[str, dict[str, Any]] = {"cuda": {}, "rocm": {}}
    for name, (platform, flags, _) in SERVED.items():
        cases[platform][name] = ((9, 0), flags)
    for name, (capability, flags, _) in REFUSED.items():
        cases["cuda"][name] = (capability, flags)
    found = {}
    for platform, asked in cases.items():
        lines = [
            json.dumps({"capability": capability, "engine": {"model": model, **flags}})
            for capability, flags in asked.values()
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.engine.helpers.gpu_configuration", platform],
            input="\n".join(lines),
            text=True,
            capture_output=True,
            timeout=300,
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(answers) == len(asked), done.stderr
        found |= zip(asked, map(json.loads, answers), strict=True)
    return found


@pytest.mark.parametrize("name", SERVED)
def test_the_flag_is_served(configured: dict[str, dict[str, Any]], name: str) -> None:
    platform, _, backend = SERVED[name]
    assert configured[name] == {
        "platform": f"HeadKV{platform.capitalize()}Platform",
        "backend": backend,
        "block_size": 16,
        "scheduler": "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler",
    }


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_refused(configured: dict[str, dict[str, Any]], name: str) -> None:
    *_, reason = REFUSED[name]
    assert reason in configured[name]["error"]
