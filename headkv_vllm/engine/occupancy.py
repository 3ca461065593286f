# SPDX-License-Identifier: Apache-2.0
"""What live requests hold, and what the same requests would hold in stock vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from headkv_vllm.budgets.request import RequestBudget
from headkv_vllm.cache.block_row import HEADER_SIZE, num_row_entries

Rows = Mapping[str, Sequence[KVCacheBlock]]
"""Each request's row, `headkv_vllm.cache.block_row`; empty where it holds nothing yet."""
Budgets = Mapping[str, RequestBudget]


@dataclass(frozen=True)
class Occupancy:
    """Counted request by request: a block that several share counts for each of them.

    num_blocks: held now. num_stock_blocks: what the same tokens fill in stock vLLM.
    num_compressed_requests: those that have given their prompt's full blocks back.
    num_compressed_blocks: the sum of their K.
    """

    num_blocks: int = 0
    num_stock_blocks: int = 0
    num_compressed_requests: int = 0
    num_compressed_blocks: int = 0


def occupancy(rows: Rows, budgets: Budgets) -> Occupancy:
    """Looks at one entry of each row only, because it is asked for at every step."""
    num_blocks = num_stock = num_requests = num_compressed = 0
    for request_id, row in rows.items():
        if not row:
            continue
        budget = budgets[request_id]
        num_leading = num_row_entries(budget.num_compressed_blocks, 0)
        num_stock += len(row) - num_leading
        num_blocks += len(row) - HEADER_SIZE
        if budget.compressed and row[num_leading].is_null:
            num_blocks -= budget.num_full_blocks
            num_requests += 1
            num_compressed += budget.num_compressed_blocks
    return Occupancy(num_blocks, num_stock, num_requests, num_compressed)


def occupancy_plain(rows: Rows, budgets: Budgets) -> Occupancy:
    """Plain twin of `occupancy`."""
    held = stock = requests = compressed = 0
    for request_id, row in rows.items():
        entries = row[HEADER_SIZE:]
        num_held = sum(not block.is_null for block in entries)
        num_compressed = budgets[request_id].num_compressed_blocks if row else 0
        is_compressed = num_held < len(entries)
        held, stock = held + num_held, stock + len(entries) - num_compressed
        requests += is_compressed
        compressed += num_compressed * is_compressed
    return Occupancy(held, stock, requests, compressed)
