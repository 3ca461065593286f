# SPDX-License-Identifier: Apache-2.0
"""What our backends have in common, whatever kernels they run."""

from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE
from headkv_vllm.engine.kv_cache import HeadKVSpec
from headkv_vllm.engine.names import BACKEND_NAME


class HeadKVBackendMixin:
    """Goes in front of the backend of vLLM's that is extended."""

    # vLLM's slot mapping takes a row for a plain list of blocks, so the implementation writes to
    # the cache itself, by a mapping of its own.
    forward_includes_kv_cache_update = True

    preferred_block_size: ClassVar[int]

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """vLLM 0.33 asks for it where the user has set none; 0.32's platform is told by ours."""
        return cls.preferred_block_size

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """On CPUs multiples of 32 run on the fastest instruction set, those of 16 on "vec16"."""
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
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Steps are planned by how many tokens the host says that each request computes."""
        return False

    @classmethod
    def supports_kv_connector(cls) -> bool:
        return False
