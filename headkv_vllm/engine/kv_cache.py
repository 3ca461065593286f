# SPDX-License-Identifier: Apache-2.0
"""vLLM's view of our KV cache: the spec of a layer, and the manager of the requests' blocks.

The manager runs in the scheduler's process. It knows how many blocks a request holds. It does not
know heads: the workers decide what the blocks contain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override
from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, replace_as
from vllm.v1.request import Request

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import (
    RequestBudget,
    max_compressed_blocks,
    max_requested_blocks,
    request_budget,
)
from headkv_vllm.cache.block_row import HEADER_SIZE, num_row_entries, row_header
from headkv_vllm.engine.logger import logger
from headkv_vllm.engine.settings import query_blocks, read_settings
from headkv_vllm.errors import UnsupportedError, shown


@dataclass(frozen=True, kw_only=True)
class HeadKVSpec(FullAttentionSpec):
    """Full attention whose requests hold a header and compressed blocks besides their tokens."""

    @classmethod
    def from_stock(cls, spec: AttentionSpec) -> "HeadKVSpec":
        """Raises UnsupportedError for layers that are not of full attention."""
        if type(spec) is not FullAttentionSpec or spec.non_causal:
            raise UnsupportedError(
                f"--attention-backend headkv does not support layers with {shown(spec)}: only "
                "causal full attention can be compressed"
            )
        converted: HeadKVSpec = replace_as(spec, cls)
        return converted

    @override
    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Width of a block-table row for all budgets that requests may ask for: see `block_row`."""
        settings = read_settings(vllm_config)
        num_private_blocks = max_requested_blocks(settings, max_len, self.block_size)
        num_private_blocks += query_blocks(vllm_config, settings, self.block_size)
        return num_row_entries(num_private_blocks, cdiv(max_len, self.block_size))

    @override
    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes of one layer for one request of the server's budget.

        A request holds its whole prompt and the compressed blocks from admission until its prompt
        is complete; with `compress_prefill`, no more than between two compressions. A request with
        a larger budget than the server's is compressed only if the pool has room.
        """
        max_model_len = vllm_config.model_config.max_model_len
        settings = read_settings(vllm_config)
        num_query_blocks = query_blocks(vllm_config, settings, self.block_size)
        if settings.compress_prefill:
            budget = request_budget(settings, max_model_len, self.block_size)
            num_blocks = budget.max_blocks(max_model_len, self.block_size, num_query_blocks)
            return num_blocks * self.page_size_bytes
        num_blocks = cdiv(max_model_len, self.block_size)
        num_blocks += max_compressed_blocks(settings, max_model_len, self.block_size)
        if settings.compress_every:
            num_blocks += num_query_blocks
        return num_blocks * self.page_size_bytes


class HeadKVManager(FullAttentionManager):
    """Holds each request's blocks as its row, `headkv_vllm.cache.block_row`.

    A row's header entries are null blocks with a number in place of a block number. vLLM sends
    them to the workers like block numbers, and its pool does not free, hash or count null blocks.

    The scheduler announces each request's budget before it allocates blocks, and withdraws the
    budget when the request has ended. A preempted request keeps its budget and loses its row.

    A model with sliding-window layers has managers of vLLM's beside this one, with the same pool.

    num_freed_blocks: blocks of tokens that compressed requests have freed so far.
    num_replaced_blocks: of each request with a row, the blocks of tokens that it has freed.
    """

    # Only full prompt blocks are shared.
    supports_fine_grained_hash_lookup = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budgets: dict[str, RequestBudget] = {}
        self.num_freed_blocks = 0
        self.num_replaced_blocks: dict[str, int] = {}
        self.num_query_blocks = 0
        """Private blocks of a request that is compressed again. The scheduler sets the number."""
        self.admission: Callable[[str, int], int] = lambda _, num_missing: num_missing
        """Gives the blocks that must be free before a waiting request may run.

        Its arguments are the request's id and the blocks that the request needs now.
        """

    def announce(self, request_id: str, budget: RequestBudget) -> None:
        """Called once, before the first allocation."""
        self.budgets[request_id] = budget

    def withdraw(self, request_id: str) -> None:
        """Called when the request has ended and its blocks are free."""
        self.budgets.pop(request_id, None)

    def num_private_blocks(self, budget: RequestBudget) -> int:
        """M: the compressed blocks, and those for queries."""
        return budget.num_private_blocks(self.num_query_blocks)

    def max_blocks(self, budget: RequestBudget, num_tokens: int) -> int:
        """The maximum that a request of `num_tokens` tokens in total holds at a time."""
        return budget.max_blocks(num_tokens, self.block_size, self.num_query_blocks)

    def max_blocks_again(self, budget: RequestBudget) -> int:
        """The maximum that a request holds between two compressions, both included."""
        return budget.max_blocks_again(self.block_size, self.num_query_blocks)

    @override
    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        *args: object,
        apply_admission_cap: bool = False,
        **kwargs: object,
    ) -> int:
        """Blocks that the pool must give for `num_tokens` tokens of the request.

        apply_admission_cap: vLLM asks whether a waiting request may run. The result is then the
        number of blocks that must be free for it: see `engine.admission`.
        """
        row = self.req_to_blocks.get(request_id)
        num_held = len(row) if row else HEADER_SIZE + len(new_computed_blocks)
        num_entries = self._row_length(request_id, num_tokens)
        if apply_admission_cap and (budget := self.budgets[request_id]).interval:
            # vLLM asks for all tokens of the request, and it never holds all of them at a time.
            num_replaced = self.num_replaced_blocks.get(request_id, 0)
            most = HEADER_SIZE + self.max_blocks(budget, num_tokens) + num_replaced
            num_entries = min(num_entries, most)
        num_missing = max(0, num_entries - num_held)
        num_missing += self._get_num_evictable_blocks(new_computed_blocks)
        return self.admission(request_id, num_missing) if apply_admission_cap else num_missing

    @override
    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """The row of a request that has ended or is preempted."""
        self.num_replaced_blocks.pop(request_id, None)
        row: list[KVCacheBlock] = super().pop_blocks_for_free(request_id)
        return row

    def num_held(self, request_id: str) -> int:
        """Blocks of the pool in the request's row, without header entries."""
        row = self.req_to_blocks.get(request_id)
        if not row:
            return 0
        return len(row) - HEADER_SIZE - self.num_replaced_blocks.get(request_id, 0)

    @override
    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        """Extend the row for `num_tokens` tokens. Returns the new entries.

        At the first call the row has prefix hits only. The header and the compressed blocks then
        go in front of them.
        """
        row = self.req_to_blocks[request_id]
        head = [] if self._has_header(request_id) else self._new_header(request_id)
        row[:0] = head
        num_missing = max(0, self._row_length(request_id, num_tokens) - len(row))
        new_blocks = self._take_blocks(num_missing)
        row.extend(new_blocks)
        return head + new_blocks

    @override
    def cache_blocks(
        self,
        request: Request,
        num_tokens: int,
        retention_interval: int | None = None,
        *,
        replay_boundaries: Sequence[int],
    ) -> None:
        """Hash the full blocks of the first `num_tokens` tokens for prefix caching.

        Only the prompt blocks before the observation window of a compressed request are hashed.
        Later tokens attended the compressed cache, so their entries differ from those of the same
        tokens without compression. The scheduler cuts the list of hashes at the window.
        """
        request_id = request.request_id
        num_full_blocks = min(num_tokens // self.block_size, len(request.block_hashes))
        num_cached_blocks = self.num_cached_block.get(request_id, 0)
        if num_full_blocks <= num_cached_blocks:
            return
        self.block_pool.cache_full_blocks(
            request=request,
            blocks=self.req_to_blocks[request_id][self._num_leading_entries(request_id) :],
            num_cached_blocks=num_cached_blocks,
            num_full_blocks=num_full_blocks,
            block_size=self.block_size,
            kv_cache_group_id=self.kv_cache_group_id,
        )
        self.num_cached_block[request_id] = num_full_blocks

    @override
    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free the blocks of a request that head blocks have replaced.

        "Processed" means that the step has finished, so no running step reads the blocks. Blocks
        of a prompt keep their hashes and serve prefix hits until the pool needs them.
        """
        if request_id not in self.num_replaced_blocks:  # no row
            return
        budget, before = self.budgets[request_id], self.num_replaced_blocks[request_id]
        after = budget.num_replaced_blocks(processed_computed_tokens, self.block_size)
        if after <= before:
            return
        num_held, first = self.num_held(request_id), self._num_leading_entries(request_id)
        self._remove_blocks_in_range(request_id, first + before, first + after)
        self.num_freed_blocks += after - before
        self.num_replaced_blocks[request_id] = after
        logger.debug(
            "HeadKV: request %s compressed its first %d blocks of tokens: it held %d blocks, "
            "and now holds %d",
            request_id,
            after,
            num_held,
            self.num_held(request_id),
        )

    def check_integrity(self) -> None:
        """Assert that rows match their budgets, and that compressed blocks are private."""
        owners: dict[int, str] = {}
        for request_id, row in self.req_to_blocks.items():
            if not row:
                continue
            budget = self.budgets[request_id]
            num_leading = self._num_leading_entries(request_id)
            assert self._has_header(request_id)
            header = [entry.block_id for entry in row[:HEADER_SIZE]]
            assert header == self._header(budget)
            num_replaced = self.num_replaced_blocks[request_id]
            assert all(block.is_null for block in row[num_leading : num_leading + num_replaced])
            assert self.num_held(request_id) == sum(not block.is_null for block in row)
            for block in row[HEADER_SIZE:num_leading]:
                assert block.ref_cnt == 1 and block.block_hash is None and not block.is_null
                assert owners.setdefault(block.block_id, request_id) == request_id
            num_shared = budget.num_full_blocks if budget.compressed else len(row)
            for block in row[num_leading + max(num_shared, num_replaced) :]:
                assert block.ref_cnt == 1 and block.block_hash is None and not block.is_null

    def _num_leading_entries(self, request_id: str) -> int:
        return num_row_entries(self.num_private_blocks(self.budgets[request_id]), 0)

    def _row_length(self, request_id: str, num_tokens: int) -> int:
        return self._num_leading_entries(request_id) + cdiv(num_tokens, self.block_size)

    def _has_header(self, request_id: str) -> bool:
        # Freed blocks are null blocks too, but they are never the first entry of a row.
        row = self.req_to_blocks[request_id]
        return bool(row) and row[0].is_null

    def _new_header(self, request_id: str) -> list[KVCacheBlock]:
        budget = self.budgets[request_id]
        self.num_replaced_blocks[request_id] = 0
        header = [KVCacheBlock(block_id=value, is_null=True) for value in self._header(budget)]
        return header + self._take_blocks(self.num_private_blocks(budget))

    def _take_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        if num_blocks == 0:
            return []
        blocks: list[KVCacheBlock] = self.block_pool.get_new_blocks(num_blocks)
        if self._record_new_block_ids:
            self.new_block_ids.extend(block.block_id for block in blocks)
        return blocks

    def _header(self, budget: RequestBudget) -> list[int]:
        policy_index = list(POLICIES).index(budget.policy)
        num_private = self.num_private_blocks(budget)
        return row_header(budget.num_prompt_tokens, num_private, policy_index, budget.interval)
