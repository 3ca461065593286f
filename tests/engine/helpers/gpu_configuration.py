# SPDX-License-Identifier: Apache-2.0
"""Configures an engine as on a GPU that is not there.

`python -m tests.engine.helpers.gpu_configuration cuda`, or `rocm`, is a program of its own, because
vLLM knows one platform only. Each line of standard input is a case as JSON: the GPU's compute
capability and the engine's arguments. What vLLM's platform, extended by ours, makes of a case is
a line of standard output. A case has a forked process of its own, as vLLM keeps what it learns.
"""

import importlib
import json
import os
import sys
import traceback
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import vllm.platforms
from vllm.platforms.interface import DeviceCapability
from vllm.utils.import_utils import resolve_obj_by_qualname

from headkv_vllm.engine.names import PLATFORM_PATHS

COMPILED = {
    "vllm._C": (),  # of the CPU build, where it needs instructions that not all CPUs have
    "vllm._C_stable_libtorch": (),
    "vllm.vllm_flash_attn": (
        "compile_flash_attn_varlen_func_from_specs",
        "flash_attn_varlen_func",
        "get_scheduler_metadata",
    ),
}
"""vLLM's extensions, and what is imported from them; nothing of them is called."""
for name, members in COMPILED.items():
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(dict.fromkeys(members))
for question in ("cutlass_scaled_mm_supports_block_fp8", "cutlass_scaled_mm_supports_fp8"):
    setattr(torch.ops._C, question, lambda _: False)


def pretend(platform: Any, capability: DeviceCapability) -> None:
    """Let vLLM's platform be `platform`, which then answers for a GPU."""
    platform.get_device_capability = classmethod(lambda cls, device_id=0: capability)
    platform.get_device_name = classmethod(lambda cls, device_id=0: "a GPU")
    platform.get_device_total_memory = classmethod(lambda cls, device_id=0: 80 << 30)
    platform.device_count = classmethod(lambda cls: 1)
    platform.num_compute_units = classmethod(lambda cls, device_id=0: 132)
    vllm.platforms._current_platform = platform()


def configure(platform: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What becomes of the engine's arguments."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.selector import AttentionSelectorConfig

    always = {"attention_backend": "HEADKV", "skip_tokenizer_init": True, "max_model_len": 512}
    config = EngineArgs(**(always | arguments)).create_engine_config()
    selector_config = AttentionSelectorConfig(
        head_size=config.model_config.get_head_size(),
        dtype=config.model_config.dtype,
        kv_cache_dtype=config.cache_config.cache_dtype,
        block_size=config.cache_config.block_size,
    )
    backend = platform.get_attn_backend_cls(config.attention_config.backend, selector_config)
    return {
        "platform": type(vllm.platforms.current_platform).__name__,
        "backend": backend,
        "block_size": config.cache_config.block_size,
        "scheduler": config.scheduler_config.scheduler_cls,
    }


def answer(platform: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The same, or the last line of the error that ends it."""
    from vllm.v1.attention.backends import fa_utils

    capability = DeviceCapability(*case["capability"])
    pretend(platform, capability)
    fa_utils.get_flash_attn_version = lambda **_: 3 if capability.major == 9 else 2
    try:
        return configure(platform, case["engine"])
    except Exception as error:
        return {"error": traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}


def main() -> None:
    # vLLM's platform for ROCm asks for this as soon as it is imported.
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(gcnArchName="gfx942")
    (ours,) = [path for stock, path in PLATFORM_PATHS.items() if f".{sys.argv[1]}." in stock]
    platform = resolve_obj_by_qualname(ours)
    pretend(platform, DeviceCapability(9, 0))
    from headkv_vllm.engine.plugin import register

    register()
    # This import takes seconds. The forked processes share it.
    importlib.import_module("vllm.engine.arg_utils")
    for case in map(json.loads, sys.stdin.readlines()):
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            print(json.dumps(answer(platform, case)), flush=True)
            os._exit(0)


if __name__ == "__main__":
    assert not torch.cuda.is_available()
    main()
