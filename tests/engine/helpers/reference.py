# SPDX-License-Identifier: Apache-2.0
"""What the engine should answer, computed in the open: transformers, loops and masks.

A model with eager attention reads the prompt and keeps its whole cache. Compression is a mask: of
every KV head's keys before the tail, only those that the head keeps can be seen while the answer
is generated. Nothing here is shared with the package.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

Scores = list[list[float]]

LAST_QUERIES = 32
"""As many of a prompt's queries are looked at; no window is longer."""


@dataclass(frozen=True)
class Compression:
    """What the engine is told.

    scores: [L][H], one for each KV head; None is for policies that use none.
    """

    budget: int
    block_size: int
    scores: Scores | None
    policy: str = "headkv"
    beta: float = 1.2
    window: int = 8
    kernel_size: int = 15
    pooling: str = "avg"
    query_reduction: str = "mean"
    value_norm: bool = False
    sink: int = 4


@dataclass(frozen=True)
class Prefill:
    """A prompt that was read.

    attentions: for each layer [num_heads, LAST_QUERIES, T], what the last tokens look at.
    logits: [vocabulary]. cache: the model's keys and values of all T tokens.
    """

    num_tokens: int
    attentions: list[torch.Tensor]
    logits: torch.Tensor
    cache: Any


def folded_scores(path: Path, num_kv_heads: int, fold: str) -> Scores:
    """The scores of a score file for its KV heads, [L][H]: `fold` is "mean" or "max"."""
    folded = []
    for row in json.loads(path.read_text())["scores"]:
        size = len(row) // num_kv_heads
        groups = [row[head * size : (head + 1) * size] for head in range(num_kv_heads)]
        folded.append([max(group) if fold == "max" else sum(group) / size for group in groups])
    return folded


class Reference:
    """Greedy answers of the Llama-shaped model in `folder`, in float32."""

    def __init__(self, folder: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        config = self._model.config
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = config.num_key_value_heads
        self._group_size = config.num_attention_heads // self.num_kv_heads
        self._masks: list[torch.Tensor] = []
        self._attentions: list[torch.Tensor] = []
        for layer in self._model.model.layers:
            layer.self_attn.register_forward_pre_hook(self._replace_mask, with_kwargs=True)
            layer.self_attn.register_forward_hook(self._record_attention)

    @torch.inference_mode()
    def read(self, prompt: Sequence[int]) -> Prefill:
        """Full attention over the prompt."""
        self._masks, self._attentions = [], []
        out = self._model(torch.tensor([prompt]), use_cache=True)
        return Prefill(len(prompt), self._attentions, out.logits[0, -1], out.past_key_values)

    @torch.inference_mode()
    def answer(self, prefill: Prefill, how: Compression | None, num_tokens: int) -> torch.Tensor:
        """Log-probabilities of `num_tokens` greedy steps, [num_tokens, vocabulary].

        how: None keeps the whole prompt.
        """
        visible = torch.ones(self.num_layers, self.num_kv_heads, prefill.num_tokens).bool()
        if how is not None:
            visible = self._visible(prefill, how)
        logits = [prefill.logits]
        for step in range(1, num_tokens):
            length = prefill.num_tokens + step
            self._masks = [self._mask(layer, length) for layer in visible]
            token = logits[-1].argmax().view(1, 1)
            out = self._model(token, past_key_values=prefill.cache, use_cache=True)
            logits.append(out.logits[0, -1])
        prefill.cache.crop(1 - num_tokens)
        return torch.stack(logits).log_softmax(-1)

    def _mask(self, visible: torch.Tensor, length: int) -> torch.Tensor:
        """visible: [H, T]. Returns [1, num_heads, 1, length], to be added to the logits."""
        mask = torch.zeros(1, self.num_kv_heads * self._group_size, 1, length)
        hidden = (~visible).repeat_interleave(self._group_size, 0)
        mask[0, :, 0, : visible.shape[1]].masked_fill_(hidden, float("-inf"))
        return mask

    def _replace_mask(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._masks:
            kwargs["attention_mask"] = self._masks[module.layer_idx]
        return args, kwargs

    def _record_attention(
        self, module: Any, args: tuple[Any, ...], result: tuple[Any, ...]
    ) -> None:
        if not self._masks:
            self._attentions.append(result[1][0, :, -LAST_QUERIES:].clone())

    def _visible(self, prefill: Prefill, how: Compression) -> torch.Tensor:
        """Which prompt positions each KV head keeps, [L, H, T]."""
        scores = how.scores or [[1.0] * self.num_kv_heads] * self.num_layers
        num_head_blocks = deal(scores, prefill.num_tokens, how)
        visible = torch.ones(self.num_layers, self.num_kv_heads, prefill.num_tokens).bool()
        if num_head_blocks is None:
            return visible
        num_candidates = full_blocks(prefill.num_tokens, how) * how.block_size
        visible[:, :, :num_candidates] = False
        for layer in range(self.num_layers):
            wanted = [
                self._position_scores(prefill, layer, head, num_candidates, how)
                for head in range(self.num_kv_heads)
            ]
            allocated = num_head_blocks[layer]
            if how.policy in ("adakv", "headkv_ada"):
                allocated = split(wanted, sum(allocated), how.block_size)
            for head, number in enumerate(allocated):
                # The best one first, and the earlier of two equal ones.
                ranked = sorted(range(num_candidates), key=[-s for s in wanted[head]].__getitem__)
                visible[layer, head, ranked[: number * how.block_size]] = True
        return visible

    def _position_scores(
        self, prefill: Prefill, layer: int, head: int, num_candidates: int, how: Compression
    ) -> list[float]:
        """How much one KV head wants each candidate."""
        if how.policy == "streaming":
            return [math.inf if p < how.sink else float(p) for p in range(num_candidates)]
        first = head * self._group_size
        votes = prefill.attentions[layer][first : first + self._group_size]
        pooled = pool_votes(votes, num_candidates, how)
        if not how.value_norm:
            return pooled
        values = prefill.cache.layers[layer].values[0, head].tolist()
        sizes = [sum(map(abs, value)) for value in values]
        return [score * size for score, size in zip(pooled, sizes, strict=False)]


def full_blocks(num_prompt_tokens: int, how: Compression) -> int:
    """F: whole blocks before the window."""
    return (num_prompt_tokens - how.window) // how.block_size


def deal(scores: Scores, num_prompt_tokens: int, how: Compression) -> list[list[int]] | None:
    """n[L][H], the head blocks of each head; None when the prompt is left as it is."""
    most = full_blocks(num_prompt_tokens, how)
    mean = max(1, (how.budget - how.window) // how.block_size)
    if mean >= most:
        return None
    num_heads, width = len(scores) * len(scores[0]), len(scores[0])
    wanted = shares(scores, mean, how)
    allocated = round_shares(level(wanted, mean * num_heads, most), mean * num_heads)
    return [allocated[start : start + width] for start in range(0, num_heads, width)]


def shares(scores: Scores, mean: int, how: Compression) -> list[float]:
    """What each head would have, layer by layer, if blocks could be cut."""
    flat = [score for row in scores for score in row]
    if how.policy == "pyramidkv":
        last = mean / 20
        step = (2 * mean - 2 * last) / (len(scores) - 1)
        falling = [2 * mean - last - layer * step for layer in range(len(scores))]
        return [share for share, row in zip(falling, scores, strict=True) for _ in row]
    if how.policy == "random":
        flat = [flat[place] for place in np.random.default_rng(0).permutation(len(flat))]
    base, pool = mean * (1 - 1 / how.beta), mean / how.beta * len(flat)
    return [base + pool * score / sum(flat) for score in flat]


def split(wanted: list[list[float]], total: int, block_size: int) -> list[int]:
    """Ada-KV: `total` blocks of a layer for its heads, by where its best positions are.

    wanted: for each head how much it wants each candidate.
    """
    num_best = total * block_size
    lowest = sorted((score for scores in wanted for score in scores), reverse=True)[num_best - 1]
    counts = [sum(score > lowest for score in scores) for scores in wanted]
    equal = [sum(score == lowest for score in scores) for scores in wanted]
    left = num_best - sum(counts)
    for head, more in enumerate(round_shares(in_parts(equal, left), left)):
        counts[head] += more
    even = Fraction(total, 5 * len(wanted))
    exact = [even + part * Fraction(4, 5) for part in in_parts(counts, total)]
    most = len(wanted[0]) // block_size
    filled = level([float(share) for share in exact], total, most)
    # Heads that tie do so in exact fractions, and not in floats that came to them in two ways.
    return round_shares([Fraction(share).limit_denominator(100_000) for share in filled], total)


def in_parts(weights: list[int], total: int) -> list[Fraction]:
    """`total` in proportion to `weights`."""
    return [Fraction(weight * total, sum(weights)) for weight in weights]


def level(wanted: list[float], total: int, most: int) -> list[float]:
    """The water level c at which min(max(c * wanted, 1), most) sums to `total`, by bisection."""
    low, high = 0.0, most / min(wanted)
    for _ in range(200):
        middle = (low + high) / 2
        filled = [min(max(middle * share, 1.0), float(most)) for share in wanted]
        low, high = (middle, high) if sum(filled) < total else (low, middle)
    return filled


def round_shares(shares: Sequence[float | Fraction], total: int) -> list[int]:
    """Round down, then one more for the largest remainders."""
    rounded = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda head: rounded[head] - shares[head])
    for head in order[: total - sum(rounded)]:
        rounded[head] += 1
    return rounded


def pool_votes(attention: torch.Tensor, num_candidates: int, how: Compression) -> list[float]:
    """What the window and its neighbours give each candidate of one KV head.

    attention: [G, LAST_QUERIES, T], of the query heads that share the KV head.
    """
    votes = [0.0] * (attention.shape[-1] - how.window)
    queries = attention[:, -how.window :].flatten(0, 1).tolist()
    for query in queries:
        for position in range(len(votes)):
            if how.query_reduction == "max":
                votes[position] = max(votes[position], query[position])
            else:
                votes[position] += query[position] / len(queries)
    half = how.kernel_size // 2
    runs = [votes[max(0, i - half) : i + half + 1] for i in range(num_candidates)]
    return [max(run) if how.pooling == "max" else sum(run) / how.kernel_size for run in runs]
