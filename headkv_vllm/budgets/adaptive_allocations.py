# SPDX-License-Identifier: Apache-2.0
"""The allocations of live requests whose policy is adaptive."""

from collections.abc import Iterable
from dataclasses import dataclass

from headkv_vllm.budgets.allocation import Allocation


@dataclass(frozen=True, eq=False)
class _Request:
    """compressed_blocks: c_0 .. c_{K-1}. allocation: n[L, H]."""

    compressed_blocks: tuple[int, ...]
    allocation: Allocation


class AdaptiveAllocations:
    """n[L, H] of live requests of adaptive policies.

    The key of an entry is the request's first compressed block. This block belongs to the request
    for as long as the request lives. Entries are not freed when a request ends. Instead, `record`
    evicts the entries whose blocks are used again. So a lookup always finds the entry of its own
    request, and there are never more entries than blocks in the pool.

    generation: how many requests have been recorded so far.
    """

    def __init__(self) -> None:
        self._requests: dict[int, _Request] = {}
        self._keys: dict[int, int] = {}
        """By compressed block: the key of the entry that holds the block."""
        self.generation = 0

    def __len__(self) -> int:
        return len(self._requests)

    def record(self, compressed_blocks: Iterable[int], allocation: Allocation) -> None:
        """Record n[L, H] of a request whose compressed blocks are c_0 .. c_{K-1}."""
        self.generation += 1
        request = _Request(tuple(compressed_blocks), allocation)
        for block in request.compressed_blocks:
            self._evict(block)
        key = request.compressed_blocks[0]
        self._requests[key] = request
        self._keys |= dict.fromkeys(request.compressed_blocks, key)

    def allocation(self, compressed_blocks: Iterable[int]) -> Allocation:
        """n[L, H] of the request whose compressed blocks are `compressed_blocks`."""
        first, *others = compressed_blocks
        request = self._requests[first]
        assert request.compressed_blocks == (first, *others)
        return request.allocation

    def check_integrity(self) -> None:
        """Check that each block is in one entry, and that each request uses all its head blocks."""
        keys = {
            block: key
            for key, request in self._requests.items()
            for block in request.compressed_blocks
        }
        assert keys == self._keys
        requests = self._requests.values()
        assert len(keys) == sum(len(request.compressed_blocks) for request in requests)
        for request in requests:
            blocks, allocation = request.compressed_blocks, request.allocation
            assert allocation.min() >= 1
            assert allocation.sum() == len(blocks) * allocation.size

    def _evict(self, block: int) -> None:
        if block in self._keys:
            for evicted in self._requests.pop(self._keys[block]).compressed_blocks:
                del self._keys[evicted]
