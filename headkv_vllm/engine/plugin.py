# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls through our entry points. Nothing here imports vLLM before it is called."""

from typing import Any

from headkv_vllm.engine.names import BACKEND_NAME, BACKEND_PATH, PLATFORM_PATH


def register() -> None:
    """`vllm.general_plugins`: make `--attention-backend headkv` a name that vLLM knows.

    vLLM calls this in every process, and may do so more than once.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    _serve_explicit_cpu_target()
    if BACKEND_NAME in AttentionBackendEnum.__members__ or _is_foreign_cpu_platform():
        return
    register_backend(BACKEND_NAME, BACKEND_PATH)
    # A member that was added at run time pickles by value, and a spawned engine process unpickles
    # its configuration before it loads plugins, when that value is not known yet. Our function in
    # its place imports this package and registers first. It can go when vLLM loads general
    # plugins before it unpickles its configuration.
    AttentionBackendEnum[BACKEND_NAME].__reduce_ex__ = _reduce_backend


def platform() -> str | None:
    """`vllm.platform_plugins`: our platform's path where vLLM runs on its CPU build, else None."""
    from vllm.platforms import builtin_platform_plugins

    is_plain_cpu = builtin_platform_plugins["cpu"]() == "vllm.platforms.cpu.CpuPlatform"
    return PLATFORM_PATH if is_plain_cpu else None


def restore_backend() -> Any:
    """The registered backend member: what its pickle calls in a new process."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    register()
    return AttentionBackendEnum[BACKEND_NAME]


def _serve_explicit_cpu_target() -> None:
    """Patch: become the platform where vLLM does not ask platform plugins.

    Symptom: with VLLM_TARGET_DEVICE=cpu the flag is ignored, and the stock backend serves.
    Cause: for an explicit target vLLM takes its own CPU platform and asks no plugin.
    Guard: only an instance of exactly the class that ours extends is changed.
    It can go when vLLM asks platform plugins for an explicit target too.
    """
    from vllm.platforms import current_platform
    from vllm.platforms.cpu import CpuPlatform

    if type(current_platform) is CpuPlatform:
        from headkv_vllm.engine.platform import HeadKVCpuPlatform

        current_platform.__class__ = HeadKVCpuPlatform


def _is_foreign_cpu_platform() -> bool:
    """Whether another CPU platform than ours is in charge, such as that for AMD's zentorch.

    Like stock vLLM's it would ignore the flag and serve with its own backend; as long as it does
    not know our name, vLLM refuses the flag.
    """
    from vllm.platforms import current_platform

    path = f"{type(current_platform).__module__}.{type(current_platform).__qualname__}"
    return bool(current_platform.is_cpu()) and path != PLATFORM_PATH


def _reduce_backend(protocol: int) -> tuple[Any, ...]:
    return restore_backend, ()
