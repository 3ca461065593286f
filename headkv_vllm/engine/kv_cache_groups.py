# SPDX-License-Identifier: Apache-2.0
"""The KV cache groups of a model: ours, and vLLM's own for layers without full attention."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.request import Request

from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.engine.kv_cache import HeadKVManager
from headkv_vllm.errors import UnsupportedError


class Groups:
    """The managers of all groups, which share one pool of blocks.

    headkv: of the layers with full attention.
    """

    def __init__(self, coordinator: KVCacheCoordinator) -> None:
        """Raises UnsupportedError unless one group is ours."""
        managers = coordinator.single_type_managers
        own = [one for one in managers if isinstance(one, HeadKVManager)]
        if len(own) != 1:
            raise UnsupportedError(
                f"--attention-backend headkv does not support this model: vLLM distributes its "
                f"layers with full attention over {len(own)} KV cache groups"
            )
        (self.headkv,) = own
        self._others = [one for one in managers if one is not self.headkv]
        self._pool = coordinator.block_pool
        for manager in self._others:
            self._end_prefix_caching(manager)

    def can_hold(self, budget: RequestBudget, num_tokens: int) -> bool:
        """Whether the whole pool has room for a request of `num_tokens` tokens in total."""
        num_blocks = self.headkv.max_blocks(budget, num_tokens)
        for manager in self._others:
            most = manager.max_admission_blocks_per_request or num_tokens
            num_blocks += min(cdiv(num_tokens, manager.block_size), most)
        # One block of the pool is the null block.
        return num_blocks < self._pool.num_gpu_blocks

    def check_integrity(self) -> None:
        """Assert that the block accounting is right.

        Reference counts equal the number of rows that hold a block. Rows match their budgets.
        """
        self.headkv.check_integrity()
        held = Counter(
            block.block_id
            for manager in (self.headkv, *self._others)
            for row in manager.req_to_blocks.values()
            for block in row
            if not block.is_null
        )
        pool = self._pool
        assert {b.block_id: b.ref_cnt for b in pool.blocks if b.ref_cnt > 0} == held
        # A free block may still have a hash. One of the pool's blocks is its null block.
        assert pool.get_num_free_blocks() + len(held) == pool.num_gpu_blocks - 1

    def _end_prefix_caching(self, manager: SingleTypeKVCacheManager) -> None:
        """Let vLLM's manager hash no more blocks than ours does.

        Symptom: an IndexError after the prompt of a compressed request; and few prefix hits.
        Cause: vLLM's managers expect a hash for each full block of tokens, but the hashes of a
        compressed request end before its window (see `scheduler._end_hashes`). And vLLM hashes
        only the sliding windows before which it expects a hit to end.
        Guard: only managers of engines with our scheduler are changed.
        It can go when vLLM lets a request end its prefix caching at a position.
        """
        stock = manager.cache_blocks

        def cache_blocks(
            request: Request, num_tokens: int, replay_boundaries: Sequence[int], **kwargs: Any
        ) -> None:
            if self.headkv.budgets[request.request_id].compressed:
                num_hashed = len(request.block_hashes) * manager.block_size
                num_tokens, replay_boundaries = min(num_tokens, num_hashed), (num_hashed,)
            stock(request, num_tokens, replay_boundaries=replay_boundaries, **kwargs)

        manager.cache_blocks = cache_blocks  # type: ignore[method-assign, assignment]
