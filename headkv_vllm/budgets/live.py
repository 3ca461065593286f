# SPDX-License-Identifier: Apache-2.0
"""What each head of a live request keeps, where its prompt has decided that."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from headkv_vllm.budgets.allotment import HeadBlocks


@dataclass(frozen=True, eq=False)
class _Request:
    """blocks: c_0 .. c_{K-1}. num_head_blocks: n[L, H]; 0 in the layers that have yet to decide."""

    blocks: tuple[int, ...]
    num_head_blocks: HeadBlocks


class LiveAllotments:
    """n[L, H] of requests of adaptive policies, from the step that compresses them to their last.

    Entries are keyed by a request's first compressed block, which is its own as long as it lives.
    Nobody says when it ends. But the next such request that is given one of its blocks compresses
    before it reads, and `begin` then drops what the block was part of: no entry is read that is
    not its reader's, and there are never more entries than fit in the pool.

    generation: how many requests have begun.
    """

    def __init__(self, num_layers: int, num_kv_heads: int) -> None:
        self._shape = (num_layers, num_kv_heads)
        self._requests: dict[int, _Request] = {}
        self._owners: dict[int, int] = {}
        """The key of the entry that each compressed block is part of."""
        self.generation = 0

    def __len__(self) -> int:
        return len(self._requests)

    def begin(self, blocks: Iterable[int]) -> None:
        """A request is about to be compressed into `blocks`, c_0 .. c_{K-1}."""
        self.generation += 1
        request = _Request(tuple(blocks), np.zeros(self._shape, dtype=np.int32))
        for block in request.blocks:
            self._drop_owner(block)
        self._requests[request.blocks[0]] = request
        self._owners |= dict.fromkeys(request.blocks, request.blocks[0])

    def record(self, blocks: Iterable[int], layer_index: int, num_head_blocks: HeadBlocks) -> None:
        """Layer `layer_index` of the request has decided: n[layer_index], [H]."""
        self._request(blocks).num_head_blocks[layer_index] = num_head_blocks

    def allotment(self, blocks: Iterable[int]) -> HeadBlocks:
        """n[L, H] of the request that was compressed into `blocks`."""
        num_head_blocks = self._request(blocks).num_head_blocks
        assert num_head_blocks.all(), "a layer has yet to decide"
        return num_head_blocks

    def check_integrity(self) -> None:
        """Between steps: each block has one owner, and each request deals out what it has."""
        owners = {block: key for key, held in self._requests.items() for block in held.blocks}
        assert owners == self._owners
        assert len(owners) == sum(len(held.blocks) for held in self._requests.values())
        for held in self._requests.values():
            assert held.num_head_blocks.min() >= 1
            assert held.num_head_blocks.sum() == len(held.blocks) * held.num_head_blocks.size

    def _request(self, blocks: Iterable[int]) -> _Request:
        first, *others = blocks
        request = self._requests[first]
        assert request.blocks == (first, *others)
        return request

    def _drop_owner(self, block: int) -> None:
        if block in self._owners:
            for own in self._requests.pop(self._owners[block]).blocks:
                del self._owners[own]
