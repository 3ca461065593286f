# SPDX-License-Identifier: Apache-2.0
"""The pool as one array of head blocks, whatever layer's view of it there is."""

import torch


def flat_head_blocks(kv_cache: torch.Tensor, layer_index: int, num_layers: int) -> torch.Tensor:
    """All head blocks of all layers, as a cache with one KV head.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], the view of one layer.
    Returns [num_blocks * num_layers * num_kv_heads, 1, block_size, 2 * head_size].
    """
    num_blocks, num_kv_heads, block_size, content = kv_cache.shape
    size = block_size * content
    assert kv_cache.stride() == (num_layers * num_kv_heads * size, size, content, 1)
    assert kv_cache.storage_offset() == layer_index * num_kv_heads * size
    shape = (num_blocks * num_layers * num_kv_heads, 1, block_size, content)
    return kv_cache.as_strided(shape, (size, size, content, 1), 0)
