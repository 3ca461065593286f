# SPDX-License-Identifier: Apache-2.0
"""The backend on vLLM's CPU attention kernels: what it supports, and its parts."""

from typing import ClassVar

from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from headkv_vllm.engine.backends.backend import HeadKVBackendMixin
from headkv_vllm.engine.backends.cpu_attention import HeadKVCpuImpl
from headkv_vllm.engine.backends.cpu_metadata import HeadKVCpuMetadataBuilder
from headkv_vllm.engine.names import CPU_BLOCK_SIZE


class HeadKVCpuBackend(HeadKVBackendMixin, CPUAttentionBackend):
    """Stock CPU attention over whole blocks and, for compressed prompts, over head blocks."""

    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]
    preferred_block_size = CPU_BLOCK_SIZE

    @staticmethod
    def get_impl_cls() -> type["HeadKVCpuImpl"]:
        return HeadKVCpuImpl

    @staticmethod
    def get_builder_cls() -> type["HeadKVCpuMetadataBuilder"]:
        return HeadKVCpuMetadataBuilder
