# SPDX-License-Identifier: Apache-2.0
"""What each head of a live request keeps, where its prompt has decided that."""

from collections.abc import Iterable
from dataclasses import dataclass

from headkv_vllm.budgets.allocation import HeadBlocks


@dataclass(frozen=True, eq=False)
class _Request:
    """compressed_blocks: c_0 .. c_{K-1}. allocation: n[L, H]."""

    compressed_blocks: tuple[int, ...]
    allocation: HeadBlocks


class AdaptiveAllocations:
    """n[L, H] of live requests of adaptive policies.

    An entry's key is the request's first compressed block, which belongs to that request as long
    as it lives. Entries are not freed when a request ends: `record` evicts those whose blocks are
    used again. So a lookup always finds its own request, and there are never more entries than
    blocks in the pool.

    generation: how many requests have been recorded.
    """

    def __init__(self) -> None:
        self._requests: dict[int, _Request] = {}
        self._keys: dict[int, int] = {}
        """The key of the entry that each compressed block is part of."""
        self.generation = 0

    def __len__(self) -> int:
        return len(self._requests)

    def record(self, compressed_blocks: Iterable[int], allocation: HeadBlocks) -> None:
        """A request was compressed into `compressed_blocks`, c_0 .. c_{K-1}, by n[L, H]."""
        self.generation += 1
        request = _Request(tuple(compressed_blocks), allocation)
        for block in request.compressed_blocks:
            self._evict(block)
        key = request.compressed_blocks[0]
        self._requests[key] = request
        self._keys |= dict.fromkeys(request.compressed_blocks, key)

    def allocation(self, compressed_blocks: Iterable[int]) -> HeadBlocks:
        """n[L, H] of the request that was compressed into `compressed_blocks`."""
        first, *others = compressed_blocks
        request = self._requests[first]
        assert request.compressed_blocks == (first, *others)
        return request.allocation

    def check_integrity(self) -> None:
        """Each block is part of one entry, and each request uses all of its head blocks."""
        keys = {
            block: key
            for key, request in self._requests.items()
            for block in request.compressed_blocks
        }
        assert keys == self._keys
        assert len(keys) == sum(len(one.compressed_blocks) for one in self._requests.values())
        for one in self._requests.values():
            assert one.allocation.min() >= 1
            assert one.allocation.sum() == len(one.compressed_blocks) * one.allocation.size

    def _evict(self, block: int) -> None:
        if block in self._keys:
            for own in self._requests.pop(self._keys[block]).compressed_blocks:
                del self._keys[own]
