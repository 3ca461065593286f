# SPDX-License-Identifier: Apache-2.0
"""The plan for one prompt length: what the settings and the head scores mean for it."""

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from headkv_vllm.arrays import FloatArray
from headkv_vllm.budgets.allocation import Allocation, allocate_head_blocks
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget, num_query_blocks, request_budget
from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.config import Settings
from headkv_vllm.errors import SettingsError, shown

MAX_TOKENS = 2**31 - 1
"""Positions are int32 in vLLM, and numbers of head blocks are int32 here."""
BYTES_PER_ELEMENT = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}
"""By vLLM's names. "auto" is the model's dtype, which has 16 bits unless the user sets another."""


class Plan(BaseModel):
    """What one request holds when its prompt is computed and no token has been generated yet.

    head_blocks: n[L][H], how many head blocks each KV head keeps of its F full ones. If the
        request is not compressed, every head keeps all F. H counts the heads of all ranks, rank by
        rank. With fewer KV heads than ranks, each rank has one head, and neighbouring ranks hold
        copies of the same head.
    adaptive: whether the prompt decides how the heads of a layer share the layer's sum. If so,
        head_blocks shows an even split.
    num_compressed_blocks, num_full_blocks: K and F; see `RequestBudget`.
    num_tail_tokens: prompt tokens after the full blocks, observation window included. Every head
        keeps them.
    num_blocks_held: vLLM blocks that the request holds: K and the blocks of the tail.
    num_blocks_prefill: vLLM blocks until the prompt is complete: K and the whole prompt.
    num_blocks_stock: vLLM blocks that stock vLLM holds for this prompt.
    kv_bytes_held, kv_bytes_prefill, kv_bytes_stock: these blocks in bytes, over all layers and
        all ranks.
    mean_kept_tokens: prompt tokens that a KV head keeps, on average.
    kept_share: mean_kept_tokens as a part of the prompt.
    reason: why the request is not compressed; None if it is compressed.
    first_point: the number of tokens at which the request is compressed for the first time.
    max_blocks_held: the maximum of blocks that it holds after that, however long it generates. None
        without `compress_every`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    num_prompt_tokens: int
    block_size: int
    tensor_parallel_size: int
    compressed: bool
    reason: str | None
    first_point: int
    max_blocks_held: int | None
    num_compressed_blocks: int
    num_full_blocks: int
    num_tail_tokens: int
    num_blocks_held: int
    num_blocks_prefill: int
    num_blocks_stock: int
    kv_bytes_held: int
    kv_bytes_prefill: int
    kv_bytes_stock: int
    mean_kept_tokens: float
    kept_share: float
    adaptive: bool
    head_blocks: tuple[tuple[int, ...], ...]


def make_plan(
    scores: FloatArray,
    settings: Settings,
    num_prompt_tokens: int,
    block_size: int,
    head_size: int,
    bytes_per_element: int,
    tensor_parallel_size: int = 1,
    group_size: int = 1,
) -> Plan:
    """The plan for a prompt of `num_prompt_tokens` tokens.

    scores: [L, num_kv_heads], of the model.
    block_size: tokens per vLLM block.
    head_size, bytes_per_element: numbers in a key or a value, and bytes per number.
    group_size: query heads per KV head.
    Raises SettingsError when vLLM could not serve with one of these numbers.
    """
    _check_count("prompt length", num_prompt_tokens)
    _check_count("block size", block_size)
    _check_ranks(tensor_parallel_size, scores.shape[1])
    budget = request_budget(settings, num_prompt_tokens, block_size)
    head_blocks = _head_blocks(scores, budget, settings, tensor_parallel_size)
    block_bytes = 2 * bytes_per_element * head_size * block_size * head_blocks.size
    for_queries = _query_blocks(settings, group_size, block_size)
    again = budget.max_blocks_again(block_size, for_queries) if budget.interval else None
    return Plan(
        num_prompt_tokens=num_prompt_tokens,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        compressed=budget.compressed,
        reason=_reason(budget),
        first_point=budget.first_point,
        max_blocks_held=again,
        adaptive=POLICIES[budget.policy].adaptive,
        num_compressed_blocks=budget.num_compressed_blocks,
        num_full_blocks=budget.num_full_blocks,
        **_memory(budget, block_size, block_bytes, for_queries),
        **_kept(budget, block_size, head_blocks),
    )


def _check_count(name: str, value: int) -> None:
    if not 1 <= value <= MAX_TOKENS:
        raise SettingsError(
            f"{name} {shown(value)} is not allowed: it must be from 1 to {MAX_TOKENS} (tokens)"
        )


def _check_ranks(world_size: int, num_kv_heads: int) -> None:
    if world_size < 1 or (num_kv_heads % world_size and world_size % num_kv_heads):
        raise SettingsError(
            f"tensor parallel size {shown(world_size)} is not allowed: it must divide the model's "
            f"{num_kv_heads} KV heads, or be a multiple of them"
        )


def _head_blocks(
    scores: FloatArray, budget: RequestBudget, settings: Settings, world_size: int
) -> Allocation:
    """n[L, H]. Each rank allocates K * L * H_local head blocks to its own heads."""
    num_kv_heads = scores.shape[1]
    ranks = [
        scores[:, worker_kv_heads(num_kv_heads, rank, world_size)] for rank in range(world_size)
    ]
    if not budget.compressed:
        return np.full_like(np.hstack(ranks), budget.num_full_blocks, dtype=np.int32)
    return np.hstack([allocate_head_blocks(own, budget, settings) for own in ranks])


def _query_blocks(settings: Settings, group_size: int, block_size: int) -> int:
    """Q of requests that are compressed again; 0 for others."""
    number = num_query_blocks(group_size, settings.window, block_size)
    if settings.compress_every and number == 0:
        raise SettingsError(
            f"compress_every={settings.compress_every} is not allowed with blocks of {block_size} "
            f"tokens: a block has no room for the queries of one token"
        )
    return number if settings.compress_every else 0


def _memory(
    budget: RequestBudget, block_size: int, block_bytes: int, num_query_blocks: int
) -> dict[str, Any]:
    length = budget.num_prompt_tokens
    stock = -(-length // block_size)
    num_private = budget.num_private_blocks(num_query_blocks)
    prefill, held = stock + num_private, stock + num_private - _num_replaced(budget, block_size)
    if budget.delay < 0:  # the prompt is compressed while it is read
        prefill = budget.max_blocks(length, block_size, num_query_blocks)
    blocks = {"held": held, "prefill": prefill, "stock": stock}
    return {
        **{f"num_blocks_{name}": number for name, number in blocks.items()},
        **{f"kv_bytes_{name}": number * block_bytes for name, number in blocks.items()},
    }


def _kept(budget: RequestBudget, block_size: int, head_blocks: Allocation) -> dict[str, Any]:
    num_full = budget.num_full_blocks
    if budget.compressed:
        num_full = _num_replaced(budget, block_size)
    tail = budget.num_prompt_tokens - num_full * block_size
    num_blocks = int(head_blocks.sum(dtype=np.int64)) if num_full else 0
    mean = num_blocks * block_size / head_blocks.size + tail
    return {
        "num_tail_tokens": tail,
        "mean_kept_tokens": mean,
        "kept_share": mean / budget.num_prompt_tokens,
        "head_blocks": tuple(tuple(layer) for layer in head_blocks.tolist()),
    }


def _num_replaced(budget: RequestBudget, block_size: int) -> int:
    """The blocks of tokens that head blocks have replaced when the prompt is complete."""
    return budget.num_replaced_blocks(budget.num_prompt_tokens, block_size)


def _reason(budget: RequestBudget) -> str | None:
    if budget.compressed:
        return None
    if budget.skip_reason == "off":
        return "the budget is 0, which turns compression off"
    return (
        f"the prompt is too short: it has {budget.num_full_blocks} blocks before its observation "
        "window, and the budget keeps at least as many"
    )
