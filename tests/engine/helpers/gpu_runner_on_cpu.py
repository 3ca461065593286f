# SPDX-License-Identifier: Apache-2.0
"""What vLLM does on GPUs and not on CPUs, on a CPU: model runner V2, async scheduling, graphs.

vLLM brings most of it: its worker of CPUs has a runner V2, for which it wants Triton. `prepare`
comes before vLLM is imported, `install` after.
"""

import os
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch


def prepare(version: str) -> None:
    """version: of the model runner, v1 or v2.

    Triton's interpreter is a driver enough for vLLM to count Triton as there.
    """
    from triton.backends import backends

    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(version == "v2"))
    driver = SimpleNamespace(is_active=lambda: True)
    backends["cpu"] = SimpleNamespace(driver=driver)  # type: ignore[assignment]


def install() -> None:
    """As on GPUs, but for the warm-up of vLLM's own kernels, which the interpreter cannot run."""
    from triton.runtime import interpreter
    from vllm import SamplingParams
    from vllm.compilation import cuda_graph
    from vllm.model_executor.warmup import jit_warmup_triton_helper
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker

    from tests.engine.helpers import recorded_graph

    recorded_graph.install()
    torch.cuda.Event = _Event  # type: ignore[misc, assignment]
    interpreter._interpreter = _AnyMask(interpreter._interpreter)
    CpuPlatform.check_and_update_config = _keep_what_cpus_take_away(
        CpuPlatform.check_and_update_config.__func__
    )
    CpuPlatform.support_static_graph_mode = classmethod(lambda cls: True)
    CpuPlatform.opaque_attention_op = classmethod(lambda cls: False)  # a capture sees inside
    CpuPlatform.graph_pool_handle = lambda self: (0, 0)
    CPUModelRunner.load_model = _captured(CPUModelRunner.load_model)
    CPUWorker.determine_available_memory = _measuring_graphs(CPUWorker.determine_available_memory)
    CPUWorker.compile_or_warm_up_model = _as_on_gpus(CPUWorker.compile_or_warm_up_model)
    decorated = jit_warmup_triton_helper._DecoratedTritonJitKernel
    decorated.get_warmup_keys = lambda *unused, **unused_too: []
    SamplingParams.for_sampler_warmup = staticmethod(lambda: SamplingParams(temperature=0))
    cuda_graph.weak_ref_tensors = lambda tensors: tensors  # a kernel of GPUs


class _Event:
    """The device has always come to it."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.time = 0.0

    def record(self, stream: object = None) -> None:
        self.time = perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "_Event") -> float:
        return 1000 * (later.time - self.time)

    def synchronize(self) -> None: ...

    def wait(self, stream: object = None) -> None: ...


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
        scheduler_config = vllm_config.scheduler_config
        compilation_config = vllm_config.compilation_config
        is_async = scheduler_config.async_scheduling
        sizes = compilation_config.cudagraph_capture_sizes
        check(cls, vllm_config)
        scheduler_config.async_scheduling = is_async
        compilation_config.cudagraph_capture_sizes = sizes

    return classmethod(check_and_update_config)


def _captured(load_model: Any) -> Any:
    """Runner V1 captures a model that is wrapped for it; V2 does without."""

    def load_and_wrap(runner: Any, load_dummy_weights: bool = False) -> None:
        from vllm.compilation.cuda_graph import CUDAGraphWrapper
        from vllm.config import CUDAGraphMode

        with runner.jit_warmup_registry.activate():
            load_model(runner, load_dummy_weights)
        if runner.compilation_config.cudagraph_mode.has_full_cudagraphs():
            runner.model = CUDAGraphWrapper(
                runner.model, runner.vllm_config, runtime_mode=CUDAGraphMode.FULL
            )

    return load_and_wrap


def _measuring_graphs(determine: Any) -> Any:
    """A small cache comes first, with graphs that read it, and goes again."""

    def determine_available_memory(worker: Any) -> Any:
        from vllm.v1.worker.workspace import init_workspace_manager

        init_workspace_manager(worker.device)
        if worker.compilation_config.cudagraph_mode:
            worker.model_runner.profile_cudagraph_memory()
        return determine(worker)

    return determine_available_memory


def _as_on_gpus(warm_up: Any) -> Any:
    def compile_or_warm_up_model(worker: Any) -> Any:
        from vllm.v1.worker.gpu.warmup import warmup_kernels

        runner = worker.model_runner
        runner.jit_warmup_registry.warmup()
        if worker.use_v2_model_runner:
            warmup_kernels(runner, worker.execute_model, worker.sample_tokens)
        runner.capture_model()
        return warm_up(worker)

    return compile_or_warm_up_model
