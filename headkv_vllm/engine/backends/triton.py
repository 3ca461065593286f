# SPDX-License-Identifier: Apache-2.0
"""The backend on our own Triton kernels: what it supports, and its parts."""

from typing import ClassVar

import torch
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from headkv_vllm.engine.backends.backend import HeadKVBackendMixin
from headkv_vllm.engine.backends.device_metadata import HeadKVDeviceMetadataBuilder
from headkv_vllm.engine.backends.triton_attention import HeadKVTritonImpl
from headkv_vllm.engine.names import GPU_BLOCK_SIZE


class HeadKVTritonBackend(HeadKVBackendMixin, AttentionBackend):
    """Attention over blocks of tokens and over head blocks, without another library."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list[str]] = [
        "auto",
        "float16",
        "bfloat16",
        "fp8",
        "fp8_e4m3",
    ]

    preferred_block_size = GPU_BLOCK_SIZE

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size >= 16

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Older GPUs share too little memory between threads, and know no bfloat16."""
        return capability >= DeviceCapability(8, 0)

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability,
    ) -> str | None:
        """Triton turns numbers into e4m3, and back, from this capability on."""
        is_fp8 = kv_cache_dtype is not None and is_quantized_kv_cache(kv_cache_dtype)
        if is_fp8 and device_capability < DeviceCapability(8, 9):
            return "an fp8 KV cache needs a compute capability of at least 8.9"
        return None

    @staticmethod
    def get_impl_cls() -> type[HeadKVTritonImpl]:
        return HeadKVTritonImpl

    @staticmethod
    def get_builder_cls() -> type[HeadKVDeviceMetadataBuilder]:
        return HeadKVDeviceMetadataBuilder
