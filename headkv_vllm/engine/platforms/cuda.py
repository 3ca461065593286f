# SPDX-License-Identifier: Apache-2.0
"""vLLM's platform for NVIDIA GPUs with our backends for `--attention-backend headkv`."""

from dataclasses import replace
from typing import Any

from typing_extensions import override
from vllm.platforms.cuda import CudaPlatform

from headkv_vllm.engine.names import FLASH_ATTN_BACKEND_PATH
from headkv_vllm.engine.platforms.gpu import HeadKVGpuPlatform
from headkv_vllm.engine.platforms.platform import is_ours


class HeadKVCudaPlatform(HeadKVGpuPlatform, CudaPlatform):  # type: ignore[misc, valid-type]
    """Uses FlashAttention for prompts if it supports the model, and otherwise our kernels only."""

    headkv_limits = replace(HeadKVGpuPlatform.headkv_limits, cache_dtypes=("fp8", "fp8_e4m3"))

    @classmethod
    @override
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """Raises ValueError with vLLM's reasons if none of our backends supports the model."""
        chosen: str = super().get_attn_backend_cls(
            selected_backend, attn_selector_config, num_heads
        )
        if not is_ours(selected_backend):
            return chosen
        from headkv_vllm.engine.attention.flash_attn import HeadKVFlashAttentionBackend

        capability = cls.get_device_capability()
        assert capability is not None, "every NVIDIA GPU has one"
        reasons = HeadKVFlashAttentionBackend.validate_configuration(
            device_capability=capability, **attn_selector_config._asdict()
        )
        return chosen if reasons else FLASH_ATTN_BACKEND_PATH
