# SPDX-License-Identifier: Apache-2.0
"""The backend on our own Triton kernels: what it supports, and its parts."""

from typing import ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend

from headkv_vllm.engine.backends.backend import HeadKVBackendMixin
from headkv_vllm.engine.backends.device_metadata import HeadKVDeviceMetadataBuilder
from headkv_vllm.engine.backends.triton_attention import HeadKVTritonImpl


class HeadKVTritonBackend(HeadKVBackendMixin, AttentionBackend):
    """Attention over blocks of tokens and over head blocks, without another library."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size >= 16

    @staticmethod
    def get_impl_cls() -> type[HeadKVTritonImpl]:
        return HeadKVTritonImpl

    @staticmethod
    def get_builder_cls() -> type[HeadKVDeviceMetadataBuilder]:
        return HeadKVDeviceMetadataBuilder
