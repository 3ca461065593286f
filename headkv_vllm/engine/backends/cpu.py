# SPDX-License-Identifier: Apache-2.0
"""The backend on vLLM's CPU attention kernels: what it supports, and its parts."""

from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from headkv_vllm.engine.backends.cpu_attention import HeadKVCpuImpl
from headkv_vllm.engine.backends.cpu_metadata import HeadKVCpuMetadataBuilder
from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE
from headkv_vllm.engine.kv_cache import HeadKVSpec
from headkv_vllm.engine.names import BACKEND_NAME, DEFAULT_BLOCK_SIZE


class HeadKVCpuBackend(CPUAttentionBackend):
    """Stock CPU attention over whole blocks and, for compressed prompts, over head blocks."""

    # vLLM's slot mapping takes a row for a plain list of blocks, so the implementation writes to
    # the cache itself, by a mapping of its own.
    forward_includes_kv_cache_update = True

    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Multiples of 32 run on the fastest instruction set, those of 16 on "vec16"."""
        return [MultipleOf(BLOCK_SIZE_MULTIPLE)]

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """vLLM 0.33 asks for it where the user has set none; 0.32's platform is told by ours."""
        return DEFAULT_BLOCK_SIZE

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
    def supports_combination(cls, *args: Any, **kwargs: Any) -> str | None:
        """Asked by the GPU platforms only, which this backend does not run on."""
        return "HEADKV runs on vLLM's CPU platform only"

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        return False

    @staticmethod
    def get_impl_cls() -> type["HeadKVCpuImpl"]:
        return HeadKVCpuImpl

    @staticmethod
    def get_builder_cls() -> type["HeadKVCpuMetadataBuilder"]:
        return HeadKVCpuMetadataBuilder
