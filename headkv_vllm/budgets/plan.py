# SPDX-License-Identifier: Apache-2.0
"""What settings and head scores come to for one prompt length, before anything is served."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from headkv_vllm.budgets.allocation import HeadBlocks, allocate_head_blocks
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget, request_budget
from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.config import Settings
from headkv_vllm.errors import SettingsError, shown

FloatArray = npt.NDArray[np.float64]
MAX_TOKENS = 2**31 - 1
"""Positions are int32 in vLLM, and so is the number of head blocks here."""


class Plan(BaseModel):
    """What one request holds once its prompt is computed, before its first token is generated.

    head_blocks: n[L][H], the head blocks that each KV head keeps of its F full ones; all F where
        the request is not compressed. H counts the heads of all ranks, rank by rank: with fewer
        KV heads than ranks, each rank has one, and neighbours hold the same.
    adaptive: whether of head_blocks only the sum of each layer is sure, and the prompt decides how
        its heads share it.
    num_compressed_blocks, num_full_blocks: K and F, see `RequestBudget`.
    num_tail_tokens: prompt tokens after the full blocks, window included; every head keeps them.
    num_blocks_held: vLLM blocks that the request holds: K and those of the tail.
    num_blocks_prefill: the same, until the prompt is complete: K and the whole prompt.
    num_blocks_stock: what it would hold in vLLM without this package, at either time.
    kv_bytes_held, _prefill, _stock: the same in bytes, over all layers and all ranks.
    mean_kept_tokens: prompt tokens per KV head on average. kept_share: as a part of the prompt.
    reason: why the request is not compressed; None when it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    num_prompt_tokens: int
    block_size: int
    tensor_parallel_size: int
    compressed: bool
    reason: str | None
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
) -> Plan:
    """The plan of a prompt of `num_prompt_tokens` for a model with head scores [L, H_kv].

    block_size: tokens per vLLM block. head_size, bytes_per_element: of a key, and of a value.
    Raises SettingsError when a number is not one that vLLM could serve with.
    """
    _check_count("prompt length", num_prompt_tokens)
    _check_count("block size", block_size)
    _check_ranks(tensor_parallel_size, scores.shape[1])
    budget = request_budget(settings, num_prompt_tokens, block_size)
    head_blocks = _head_blocks(scores, budget, settings, tensor_parallel_size)
    block_bytes = 2 * bytes_per_element * head_size * block_size * head_blocks.size
    return Plan(
        num_prompt_tokens=num_prompt_tokens,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        compressed=budget.compressed,
        reason=_reason(budget),
        adaptive=POLICIES[budget.policy].adaptive,
        num_compressed_blocks=budget.num_compressed_blocks,
        num_full_blocks=budget.num_full_blocks,
        **_memory(budget, block_size, block_bytes),
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
) -> HeadBlocks:
    """n[L, H]: each rank deals K * L * H_local head blocks out among its own heads."""
    num_kv_heads = scores.shape[1]
    ranks = [
        scores[:, worker_kv_heads(num_kv_heads, rank, world_size)] for rank in range(world_size)
    ]
    if not budget.compressed:
        return np.full_like(np.hstack(ranks), budget.num_full_blocks, dtype=np.int32)
    return np.hstack([allocate_head_blocks(own, budget, settings) for own in ranks])


def _memory(budget: RequestBudget, block_size: int, block_bytes: int) -> dict[str, Any]:
    stock = -(-budget.num_prompt_tokens // block_size)
    prefill = stock + budget.num_compressed_blocks
    held = prefill - (budget.num_full_blocks if budget.compressed else 0)
    blocks = {"held": held, "prefill": prefill, "stock": stock}
    return {
        **{f"num_blocks_{name}": number for name, number in blocks.items()},
        **{f"kv_bytes_{name}": number * block_bytes for name, number in blocks.items()},
    }


def _kept(budget: RequestBudget, block_size: int, head_blocks: HeadBlocks) -> dict[str, Any]:
    tail = budget.num_prompt_tokens - budget.num_full_blocks * block_size
    num_blocks = int(head_blocks.sum(dtype=np.int64))
    mean = num_blocks * block_size / head_blocks.size + tail
    return {
        "num_tail_tokens": tail,
        "mean_kept_tokens": mean,
        "kept_share": mean / budget.num_prompt_tokens,
        "head_blocks": tuple(tuple(row) for row in head_blocks.tolist()),
    }


def _reason(budget: RequestBudget) -> str | None:
    if budget.compressed:
        return None
    if budget.skip_reason == "off":
        return "the budget is 0, which turns compression off"
    return (
        "the prompt is too short to gain: the blocks before its window "
        f"({budget.num_full_blocks}) are no more than the budget keeps"
    )
