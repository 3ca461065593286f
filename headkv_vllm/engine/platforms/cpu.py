# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU platform with our backend for `--attention-backend headkv`."""

from typing import TYPE_CHECKING, Any

from typing_extensions import override
from vllm.platforms.cpu import CpuPlatform

from headkv_vllm.config import Settings
from headkv_vllm.engine.names import (
    CPU_BACKEND_PATH,
    CPU_BLOCK_SIZE,
    CPU_SLIDING_WINDOW_PATH,
)
from headkv_vllm.engine.platforms.platform import HeadKVPlatform, is_ours

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class HeadKVCpuPlatform(HeadKVPlatform, CpuPlatform):
    """Uses vLLM's CPU attention kernels."""

    headkv_backend = CPU_BACKEND_PATH
    headkv_block_size = CPU_BLOCK_SIZE

    @classmethod
    @override
    def _prepare(cls, vllm_config: "VllmConfig") -> Settings | None:
        from headkv_vllm.engine.attention.cpu_cache import packing
        from headkv_vllm.engine.settings import model_dtype

        settings = super()._prepare(vllm_config)
        if settings is not None:
            head_size = vllm_config.model_config.get_head_size()
            packing(model_dtype(vllm_config), vllm_config.cache_config.block_size, head_size)
        return settings

    @classmethod
    @override
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """Our backend if it is selected. Stock vLLM ignores the flag on CPU."""
        if is_ours(selected_backend):
            has_window = attn_selector_config.has_sliding_window
            return CPU_SLIDING_WINDOW_PATH if has_window else cls.headkv_backend
        return super().get_attn_backend_cls(selected_backend, attn_selector_config, num_heads)
