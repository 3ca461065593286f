# SPDX-License-Identifier: Apache-2.0
"""The backend on our own Triton kernels: what it supports, and its parts."""

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from headkv_vllm.engine.backends.device_metadata import HeadKVDeviceMetadataBuilder
from headkv_vllm.engine.backends.triton_attention import HeadKVTritonImpl
from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE
from headkv_vllm.engine.kv_cache import HeadKVSpec
from headkv_vllm.engine.names import BACKEND_NAME


class HeadKVTritonBackend(AttentionBackend):
    """Attention over blocks of tokens and over head blocks, without another library."""

    # vLLM's slot mapping takes a row for a plain list of blocks, so the implementation writes to
    # the cache itself, by a mapping of its own.
    forward_includes_kv_cache_update = True

    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(BLOCK_SIZE_MULTIPLE)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Blocks outermost, so that all head blocks form one flat array."""
        return (KVCacheLayout.BLHNC,)

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Raises UnsupportedError for layers that are not of full attention."""
        return HeadKVSpec.of(spec)

    @staticmethod
    def get_name() -> str:
        return BACKEND_NAME

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size >= 16

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_kv_connector(cls) -> bool:
        return False

    @staticmethod
    def get_impl_cls() -> type[HeadKVTritonImpl]:
        return HeadKVTritonImpl

    @staticmethod
    def get_builder_cls() -> type[HeadKVDeviceMetadataBuilder]:
        return HeadKVDeviceMetadataBuilder
