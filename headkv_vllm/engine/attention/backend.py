# SPDX-License-Identifier: Apache-2.0
"""What our attention backends have in common, whatever kernels they run."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override
from vllm.v1.attention.backend import AttentionBackend, AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE
from headkv_vllm.engine.kv_cache import HeadKVSpec
from headkv_vllm.engine.names import BACKEND_NAME
from headkv_vllm.errors import UnsupportedError

if TYPE_CHECKING:
    _Stock = AttentionBackend  # so that what we override is checked
else:
    _Stock = object


class HeadKVBackendMixin(_Stock):
    """Goes in front of the backend of vLLM's that is extended."""

    # vLLM's slot mapping takes a row for a plain list of blocks, so the implementation writes to
    # the cache itself, by a mapping of its own.
    forward_includes_kv_cache_update = True

    preferred_block_size: ClassVar[int]

    @classmethod
    @override
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """vLLM 0.33 calls this where the user has set none; for 0.32 our platform sets it."""
        return cls.preferred_block_size

    @staticmethod
    @override
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """On CPUs multiples of 32 run on the fastest instruction set, those of 16 on "vec16"."""
        return [MultipleOf(BLOCK_SIZE_MULTIPLE)]

    @classmethod
    @override
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Blocks outermost, so that all head blocks form one flat array."""
        return (KVCacheLayout.BLHNC,)

    @classmethod
    @override
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Raises UnsupportedError for layers that are not of full attention."""
        return HeadKVSpec.from_stock(spec)

    @staticmethod
    @override
    def get_name() -> str:
        return BACKEND_NAME

    @classmethod
    @override
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    @override
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    @override
    def supports_non_causal(cls) -> bool:
        return False

    @classmethod
    @override
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Steps are planned by how many tokens the host says that each request computes."""
        return False

    @classmethod
    @override
    def supports_kv_connector(cls) -> bool:
        return False


def check_features(
    has_alibi: bool, has_sliding_window: bool, shares_cache: bool, has_sinks: bool = False
) -> None:
    """Raises UnsupportedError for the first feature that a layer uses."""
    is_used = {
        "ALiBi": has_alibi,
        "sliding-window attention": has_sliding_window,
        "layers that share another layer's KV cache": shares_cache,
        "attention sinks": has_sinks,
    }
    for feature, used in is_used.items():
        if used:
            raise UnsupportedError(f"--attention-backend headkv does not support {feature}")


def flat_head_blocks(kv_cache: torch.Tensor, layer_index: int, num_layers: int) -> torch.Tensor:
    """All head blocks of all layers, from the view of one layer; see `head_block_tables`.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], the view of one layer.
    Returns [num_blocks * num_layers * num_kv_heads, block_size, 2 * head_size].
    """
    num_blocks, num_kv_heads, block_size, content = kv_cache.shape
    size = block_size * content
    assert kv_cache.stride() == (num_layers * num_kv_heads * size, size, content, 1), "no padding"
    assert kv_cache.storage_offset() == layer_index * num_kv_heads * size
    shape = (num_blocks * num_layers * num_kv_heads, block_size, content)
    return kv_cache.as_strided(shape, (size, content, 1), 0)
