# SPDX-License-Identifier: Apache-2.0
"""What vLLM does on GPUs and not on CPUs, on a CPU: model runner V2, async scheduling, graphs.

vLLM brings most of it: its worker of CPUs has a runner V2, for which it wants Triton. `prepare`
comes before vLLM is imported, `install` after.
"""

import os
from types import SimpleNamespace
from typing import Any


def prepare() -> None:
    """Triton's interpreter is a driver enough for vLLM to count Triton as there."""
    from triton.backends import backends

    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    driver = SimpleNamespace(is_active=lambda: True)
    backends["cpu"] = SimpleNamespace(driver=driver)  # type: ignore[assignment]


def install() -> None:
    """As on GPUs, but for the sampling in the warm-up, which the interpreter cannot run."""
    from triton.runtime import interpreter
    from vllm import SamplingParams
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.cpu_worker import CPUWorker

    from tests.engine import recorded_graph

    recorded_graph.install()
    interpreter._interpreter = _AnyMask(interpreter._interpreter)
    CpuPlatform.check_and_update_config = _keep_what_cpus_take_away(
        CpuPlatform.check_and_update_config.__func__
    )
    CpuPlatform.support_static_graph_mode = classmethod(lambda cls: True)
    CpuPlatform.opaque_attention_op = classmethod(lambda cls: False)  # a capture sees inside
    CpuPlatform.graph_pool_handle = lambda self: (0, 0)
    CPUWorker.compile_or_warm_up_model = _as_on_gpus(CPUWorker.compile_or_warm_up_model)
    SamplingParams.for_sampler_warmup = staticmethod(lambda: SamplingParams(temperature=0))


class _AnyMask:
    """The interpreter makes integers of masks that are joined by `&`, and refuses those."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def load(self, pointers: Any, mask: Any, *others: Any) -> Any:
        return self._real.load(pointers, mask.astype(bool), *others)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        return self._real.store(pointers, values, mask.astype(bool))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _keep_what_cpus_take_away(check: Any) -> Any:
    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        compilation_config = vllm_config.compilation_config
        sizes = compilation_config.cudagraph_capture_sizes
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True
        compilation_config.cudagraph_capture_sizes = sizes

    return classmethod(check_and_update_config)


def _as_on_gpus(warm_up: Any) -> Any:
    def compile_or_warm_up_model(worker: Any) -> Any:
        from vllm.v1.worker.gpu.warmup import warmup_kernels
        from vllm.v1.worker.workspace import init_workspace_manager

        runner = worker.model_runner
        init_workspace_manager(worker.device)
        if worker.vllm_config.kernel_config.enable_jit_warmup:
            runner.jit_warmup_registry.warmup()
            warmup_kernels(runner, worker.execute_model, worker.sample_tokens)
        if not worker.model_config.enforce_eager:
            runner.capture_model()
        return warm_up(worker)

    return compile_or_warm_up_model
