# SPDX-License-Identifier: Apache-2.0
"""What a layer may not do to its attention, whatever kernels compute it."""

from headkv_vllm.errors import UnsupportedError


def check_features(
    has_alibi: bool, has_sliding_window: bool, has_sinks: bool, shares_cache: bool
) -> None:
    """Raises UnsupportedError for the first feature that a layer uses."""
    is_used = {
        "ALiBi": has_alibi,
        "sliding-window attention": has_sliding_window,
        "attention sinks": has_sinks,
        "layers that share another layer's KV cache": shares_cache,
    }
    for feature, used in is_used.items():
        if used:
            raise UnsupportedError(f"--attention-backend headkv does not support {feature}")
