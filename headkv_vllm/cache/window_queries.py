# SPDX-License-Identifier: Apache-2.0
"""Queries of the observation windows of generated tokens, kept in the KV cache.

A prompt's window is computed in one step. Generated tokens are computed one by one, so their
queries must wait for the compression. They wait in private blocks of their request. So they live
and end with the request, and a step needs no state of earlier steps.

In each layer, a block has room for `2 * block_size * num_kv_heads * head_size` numbers. These hold
the queries of `2 * block_size // G` tokens, where G is the number of query heads per KV head.
"""

from collections.abc import Sequence

import numpy as np
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.request import queries_per_block


class WindowQueries:
    """The queries that wait, by layer and place. A place is a number: block * size + offset."""

    def __init__(
        self, kv_caches: Sequence[torch.Tensor], num_heads: int, num_kv_heads: int, window: int
    ) -> None:
        """kv_caches: L views of [num_blocks, num_kv_heads, block_size, 2 * head_size], in the
        model's dtype. num_heads: query heads. window: in tokens.
        """
        block_size, width = kv_caches[0].shape[2:]
        self._per_block = queries_per_block(num_heads // num_kv_heads, block_size)
        self._shape = (num_heads, width // 2)
        size = num_heads * width // 2
        # [num_blocks, per_block, num_heads, head_size]; the rest of a block is not used.
        self._queries = [
            kv_cache.flatten(1)[:, : self._per_block * size].unflatten(1, (-1, *self._shape))
            for kv_cache in kv_caches
        ]
        self._window = window

    def write(self, layer: int, query: torch.Tensor, places: torch.Tensor) -> None:
        """query: [n, num_heads, head_size]. places: [n] int64."""
        size = self._per_block
        self._queries[layer][places // size, places % size] = query.view(-1, *self._shape)

    def read(self, blocks: torch.Tensor) -> torch.Tensor:
        """The queries of one window: [L, window, num_heads, head_size].

        blocks: [Q] int64, the blocks of one request for its queries.
        """
        by_layer = [queries[blocks].flatten(0, 1)[: self._window] for queries in self._queries]
        return torch.stack(by_layer)


def window_places(blocks: IntArray, indices: IntArray, per_block: int) -> IntArray:
    """Where queries wait, for `WindowQueries`.

    blocks: [n, Q] int64, the blocks for queries of each token's request. indices: [n] int64, the
    index of each token in its observation window. per_block: see `queries_per_block`.
    Returns [n] int64.
    """
    which, offsets = np.divmod(indices, per_block)
    places: IntArray = blocks[np.arange(len(indices)), which] * per_block + offsets
    return places
