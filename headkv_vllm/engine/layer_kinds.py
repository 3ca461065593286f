# SPDX-License-Identifier: Apache-2.0
"""Whether a model's layers with full attention can be compressed beside its other layers."""

from typing import TYPE_CHECKING, Any

from headkv_vllm.errors import UnsupportedError, shown

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FULL_ATTENTION_ONLY = "only decoder layers with full attention can be compressed"
ANOTHER_BACKEND = "serve this model with another backend"
SIZES = ("total_num_attention_heads", "total_num_kv_heads", "head_size")


def check_layers(
    vllm_config: "VllmConfig", allows_sliding_windows: bool, allows_sinks: bool
) -> None:
    """Raises UnsupportedError for attention sinks and for layers that do not go together.

    allows_sliding_windows, allows_sinks: whether the platform's backend does.
    """
    from headkv_vllm.engine.settings import full_layers

    model_config = vllm_config.model_config
    text = model_config.hf_text_config
    has_sinks = text.model_type == "gpt_oss" or bool(getattr(text, "attention_sinks", None))
    if has_sinks and not allows_sinks:
        raise UnsupportedError(
            "--attention-backend headkv does not support attention sinks on this platform: "
            f"{ANOTHER_BACKEND}"
        )
    full = full_layers(model_config)
    _check_sizes(model_config, full)
    num_layers = model_config.get_total_num_hidden_layers()
    num_sliding = num_layers - len(full)
    if num_sliding == 0:
        return
    reason = _why_not_beside(vllm_config, len(full), num_sliding)
    if reason is None and not allows_sliding_windows:
        reason = "on this platform, all layers must have full attention"
    if reason:
        raise UnsupportedError(
            f"--attention-backend headkv does not support this model's sliding-window attention "
            f"({num_sliding} of {num_layers} layers): {reason}"
        )


def _check_sizes(model_config: Any, full: list[int]) -> None:
    """Raises UnsupportedError if layers with full attention have other sizes than the model.

    vLLM's sizes of a model are the maximum over all layers.
    """
    arch, text = model_config.model_arch_config, model_config.hf_text_config
    heads = getattr(text, "num_attention_heads_per_layer", None)
    for index in full:
        own = {name: getattr(arch[index], name) for name in SIZES}
        if heads:  # vLLM does not count such a model's layers one by one
            own["total_num_attention_heads"] = heads[index]
        for name, value in own.items():
            if value != getattr(arch, name):
                raise UnsupportedError(
                    f"--attention-backend headkv does not support layers of different sizes: "
                    f"{name} of layer {index} is {shown(value)}, and {getattr(arch, name)} of the "
                    "model"
                )


def _why_not_beside(vllm_config: "VllmConfig", num_full: int, num_sliding: int) -> str | None:
    """Why layers with a sliding window do not go with ours; None if they do.

    vLLM puts layers of one kind into KV cache groups, which share a pool of blocks. A group has as
    many layers as the rarer kind, unless the kinds are nearly equal: then the larger group has
    them all, and the other group is padded. Our head blocks need one group without padding.
    """
    model_config = vllm_config.model_config
    text = model_config.hf_text_config
    if num_full == 0:
        return FULL_ATTENTION_ONLY
    if vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        return "leave out --disable-hybrid-kv-cache-manager"
    # These models of vLLM's read one window for all layers, or none.
    if text.model_type.startswith("qwen"):
        return "vLLM gives the layers of this model one kind of attention"
    if model_config.get_sliding_window() is None:
        return "its window is switched off: leave out --disable-sliding-window"
    if len(set(getattr(text, "sliding_windows", None) or ())) > 1:
        return "its layers have windows of different sizes"
    if num_full < num_sliding < 1.5 * num_full or num_full >= 1.5 * num_sliding:
        return "vLLM distributes these numbers of layers over groups that cannot be compressed"
    return None
