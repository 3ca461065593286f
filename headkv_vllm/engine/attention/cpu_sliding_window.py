# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU attention for the sliding-window layers of a model whose full layers are ours."""

from typing import Any

from typing_extensions import override
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_layout import KVCacheLayout

from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE


class SlidingWindowCpuBackend(CPUAttentionBackend):
    """Stock attention in the cache's layout. All layers share one pool of blocks."""

    @classmethod
    @override
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Ours: see `HeadKVBackendMixin`. vLLM's kernels take the strides as they are."""
        return (KVCacheLayout.BLHNC,)

    @staticmethod
    @override
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """As ours, so that blocks of all layers have the same size."""
        return [MultipleOf(BLOCK_SIZE_MULTIPLE)]
