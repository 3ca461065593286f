# SPDX-License-Identifier: Apache-2.0
"""The functions of our entry points, which vLLM calls. They import vLLM only when called."""

from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from headkv_vllm.engine.names import BACKEND_NAME, PLATFORM_PATHS, PLUGIN_NAME


def register() -> None:
    """`vllm.general_plugins`: make `--attention-backend headkv` a name that vLLM knows.

    vLLM calls this in every process, maybe more than once. On other platforms, such as AMD's
    zentorch platform, which ignores the flag, the name stays unknown, so vLLM refuses the flag.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    _serve_explicit_cpu_target()
    path = getattr(type(current_platform), "headkv_backend", None)
    if BACKEND_NAME in AttentionBackendEnum.__members__ or path is None:
        return
    register_backend(BACKEND_NAME, path)
    # A member that is added at run time pickles by value. A spawned engine process unpickles its
    # configuration before it loads plugins, so it does not know the value. The function below
    # imports this package and registers the backend first. It can go when vLLM loads general
    # plugins before it unpickles its configuration.
    AttentionBackendEnum[BACKEND_NAME].__reduce_ex__ = _reduce_backend  # type: ignore[assignment, method-assign]


def platform() -> str | None:
    """`vllm.platform_plugins`: the path of our extension of the platform that vLLM detects.

    None if vLLM detects no platform, or if we do not extend it. None, too, if another plugin has a
    platform for this machine: vLLM refuses to start with two.
    """
    from vllm.platforms import builtin_platform_plugins

    if other := _other_platform():
        from headkv_vllm.engine.logger import logger

        logger.warning(
            "HeadKV: the plugin %s brings the platform, so --attention-backend headkv is not "
            "available; VLLM_PLUGINS=%s leaves the other plugin out",
            other,
            PLUGIN_NAME,
        )
        return None
    found = [_detected(plugin) for plugin in builtin_platform_plugins.values()]
    detected = [path for path in found if path is not None]
    # If there are two platforms, vLLM itself reports an error.
    return PLATFORM_PATHS.get(detected[0]) if len(detected) == 1 else None


def _other_platform() -> str | None:
    """The name of another platform plugin that vLLM would load, and that finds its hardware."""
    from vllm import envs

    for entry in entry_points(group="vllm.platform_plugins"):
        allowed = envs.VLLM_PLUGINS is None or entry.name in envs.VLLM_PLUGINS
        if allowed and entry.name != PLUGIN_NAME and _detected(partial(_call, entry)):
            return entry.name
    return None


def _call(entry: EntryPoint) -> Any:
    return entry.load()()


def restore_backend() -> Any:
    """The registered backend member. Unpickling calls this function in a new process."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    register()
    return AttentionBackendEnum[BACKEND_NAME]


def _detected(plugin: Any) -> str | None:
    try:
        path: str | None = plugin()
    except Exception:  # as in vLLM, a failure means that the platform is not there
        return None
    return path


def _serve_explicit_cpu_target() -> None:
    """Patch: use our CPU platform when vLLM does not call platform plugins.

    Symptom: with VLLM_TARGET_DEVICE=cpu the flag is ignored, and the stock backend serves.
    Cause: for an explicit target vLLM uses its own CPU platform and calls no plugin.
    Guard: only an instance of exactly vLLM's CPU platform class is changed.
    It can go when vLLM calls platform plugins for an explicit target too.
    """
    from vllm.platforms import current_platform
    from vllm.platforms.cpu import CpuPlatform

    if type(current_platform) is CpuPlatform:
        from headkv_vllm.engine.platforms.cpu import HeadKVCpuPlatform

        current_platform.__class__ = HeadKVCpuPlatform


def _reduce_backend(protocol: int) -> tuple[Any, ...]:
    return restore_backend, ()
