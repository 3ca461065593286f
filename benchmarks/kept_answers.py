# SPDX-License-Identifier: Apache-2.0
"""What a model answers when its heads keep a part of the prompt, without an engine.

A prompt is read once. Any number of settings then select what each head keeps, by the functions
that the engine calls, and a known answer is computed in one pass over the kept entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import DynamicCache

from headkv_vllm.arrays import FloatArray
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Allocation, Bounds, allocate_head_blocks
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import RequestBudget, request_budget
from headkv_vllm.cache.selection import (
    count_best,
    pool,
    recency,
    top_positions,
    value_norms,
    window_attention,
)
from headkv_vllm.config import Settings
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import AnswerRows, row_logits, weighted_values
from headkv_vllm.scoring.attention_scores import FullAttention

MAX_WINDOW = 64
"""Queries of so many last tokens of a prompt are known."""


@dataclass(frozen=True, eq=False)
class LayerEntries:
    """One layer's part of a prompt of T tokens.

    query: [num_heads, MAX_WINDOW, head_size], of the last tokens.
    keys, values: [num_kv_heads, T, head_size].
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class ReadWindow:
    """A prompt that was read, with what selection needs of it."""

    prompt: ReadPrompt
    layers: tuple[LayerEntries, ...]

    @classmethod
    @torch.no_grad()
    def from_prompt(cls, prompt: ReadPrompt, ids: Sequence[int]) -> Self:
        """Computes the last tokens of `ids`, which `prompt` holds, once more for their queries."""
        start = len(ids) - MAX_WINDOW
        cache = DynamicCache(config=prompt.model.config)
        for index in range(prompt.num_layers):
            keys, values = prompt.layer(index)
            cache.update(keys[None, :, :start], values[None, :, :start], index)
        before = ReadPrompt(prompt.model, cache, torch.tensor(ids[start : start + 1]))
        attend, layers = FullAttention(before), []

        def keep(layer: int, rows: AnswerRows) -> torch.Tensor:
            own = (rows.key, rows.value)
            pairs = zip(before.layer(layer), own, strict=True)
            keys, values = (torch.cat(pair, 1) for pair in pairs)
            layers.append(LayerEntries(rows.query, keys, values, rows.scale))
            return attend(layer, rows)

        before.answer([*ids[start + 1 :], 0], keep)
        return cls(prompt, tuple(layers))

    @property
    def num_tokens(self) -> int:
        return int(self.layers[0].keys.shape[1])

    def kept(
        self, scores: FloatArray, settings: Settings, block_size: int, after: int = 0
    ) -> torch.Tensor:
        """Which entries each KV head keeps: [L, H, T] bool. All, where a budget saves no block.

        scores: [L, H]. after: tokens that come after the observation window and are kept as it is.
        """
        kept = torch.ones(*scores.shape, self.num_tokens, dtype=torch.bool)
        protected = settings.model_copy(update={"window": settings.window + after})
        budget = request_budget(protected, self.num_tokens, block_size)
        if not budget.compressed:
            return kept
        allocation = allocate_head_blocks(scores, budget, settings)
        num_candidates = budget.num_full_blocks * block_size
        kept[..., :num_candidates] = False
        for layer, entries in enumerate(self.layers):
            own = _position_scores(entries, settings, budget, after)[:, :num_candidates]
            counts = _head_blocks(own, allocation[layer], settings, budget, block_size)
            kept[(layer, *top_positions(own, counts * block_size))] = True
        return kept


def _position_scores(
    entries: LayerEntries, settings: Settings, budget: RequestBudget, after: int
) -> torch.Tensor:
    """[H, positions before the observation window] float32, as the engine's `Compressor` has it."""
    num_heads, num_tokens, _ = entries.keys.shape
    num_tokens -= after
    if POLICIES[budget.policy].positions == "recency":
        return recency(num_tokens, settings.sink, entries.keys.device).expand(num_heads, -1)
    end = MAX_WINDOW - after
    attention = window_attention(
        entries.query[:, end - settings.window : end].unflatten(0, (num_heads, -1)),
        [entries.keys.transpose(1, 2)],
        num_tokens,
        entries.scale,
        reduction=settings.query_reduction,
    )
    scores = pool(attention[:, : num_tokens - settings.window], settings)
    if settings.value_norm:
        scores = scores * value_norms(entries.values)[:, : scores.shape[1]]
    return scores


def _head_blocks(
    scores: torch.Tensor,
    allocation: Allocation,
    settings: Settings,
    budget: RequestBudget,
    block_size: int,
) -> Allocation:
    """How many head blocks each head of a layer keeps: [H]."""
    if not POLICIES[budget.policy].adaptive:
        return allocation
    total = int(allocation.sum())
    bounds = Bounds(settings.min_blocks, budget.num_full_blocks)
    return split_layer(count_best(scores, total * block_size), total, bounds)


@dataclass(frozen=True, eq=False)
class KeptAttention:
    """Attention of an answer's tokens to the entries that are kept, [L, H, T] bool."""

    prompt: ReadPrompt
    kept: torch.Tensor

    def __call__(self, layer: int, rows: AnswerRows) -> torch.Tensor:
        """See `Attend`."""
        prompt_key, prompt_value = self.prompt.layer(layer)
        logits = row_logits(rows, prompt_key)
        # The first row is the prompt's last token. As in an engine, it is computed before the
        # prompt is compressed, and always kept.
        num_read = prompt_key.shape[1]
        group_size = len(rows.query) // len(rows.key)
        dropped = ~self.kept[layer, :, :num_read].repeat_interleave(group_size, 0)
        logits[:, 1:, :num_read].masked_fill_(dropped[:, None], float("-inf"))
        return weighted_values(logits.softmax(-1), prompt_value, rows.value)
