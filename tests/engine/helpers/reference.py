# SPDX-License-Identifier: Apache-2.0
"""What the engine should answer, computed in the open: transformers, loops and masks.

A model with eager attention reads the prompt and keeps its whole cache. Compression is a mask: of
every KV head's keys before the tail, only those that the head keeps can be seen while the answer
is generated. A request that is compressed again hides more keys. Nothing here is shared with the
package.
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
from transformers import AutoModelForCausalLM, DynamicCache

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
    compress_every: int = 0


@dataclass(frozen=True)
class Prefill:
    """A prompt that was read.

    attentions: for each layer with full attention [num_heads, LAST_QUERIES, T], what the last
        tokens look at.
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
    """Greedy answers of the Llama-shaped model in `folder`, in float32.

    Layers with a sliding window are left to transformers: `num_layers` counts the others.
    """

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        config = self._model.config
        types = getattr(config, "layer_types", None) or ["full_attention"]
        types = types * (config.num_hidden_layers // len(types))
        full = [index for index, name in enumerate(types) if name == "full_attention"]
        self.num_layers = len(full)
        self._places = {index: place for place, index in enumerate(full)}
        """Of the layers with full attention among themselves, by their index in the model."""
        self.num_kv_heads: int = config.num_key_value_heads
        self._group_size = config.num_attention_heads // self.num_kv_heads
        self._masks: list[torch.Tensor] = []
        self._attentions: list[torch.Tensor] = []
        for layer in (self._model.model.layers[index] for index in full):
            layer.self_attn.register_forward_pre_hook(self._replace_mask, with_kwargs=True)
            layer.self_attn.register_forward_hook(self._record_attention)

    @torch.inference_mode()
    def read(self, prompt: Sequence[int]) -> Prefill:
        """Full attention over the prompt."""
        self._masks, self._attentions = [], []
        # Without a configuration, the cache keeps all tokens of all layers.
        out = self._model(torch.tensor([prompt]), past_key_values=DynamicCache(), use_cache=True)
        return Prefill(len(prompt), self._attentions, out.logits[0, -1], out.past_key_values)

    @torch.inference_mode()
    def answer(
        self,
        prefill: Prefill,
        how: Compression | None,
        num_tokens: int,
        forced: Sequence[int] = (),
    ) -> torch.Tensor:
        """Log-probabilities of `num_tokens` greedy steps, [num_tokens, vocabulary].

        how: None keeps the whole prompt. forced: the first tokens, whatever the model says.
        """
        shape = (self.num_layers, self.num_kv_heads, prefill.num_tokens + num_tokens)
        visible = torch.ones(shape).bool()
        points = compression_points(prefill.num_tokens, num_tokens, how) if how else []
        # The attention of the last tokens, for each layer: [num_heads, keys] each.
        queries = [list(attention.unbind(1)) for attention in prefill.attentions]
        num_head_blocks = None
        kept: dict[tuple[int, int], list[int]] = {}
        if points and how:
            num_head_blocks = deal(how.scores or self._even_scores, points[0], how)
        logits = [prefill.logits]
        for step in range(1, num_tokens):
            length = prefill.num_tokens + step
            if length - 1 in points and how and num_head_blocks is not None:
                is_first = length - 1 == points[0]
                entries = Entries(visible, kept, queries, prefill.cache, length - 1)
                num_head_blocks = self._compress(entries, num_head_blocks, is_first, how)
            self._masks = [self._mask(layer, length) for layer in visible]
            likeliest = int(logits[-1].argmax())
            token = torch.tensor([[forced[step - 1] if step <= len(forced) else likeliest]])
            self._attentions = []
            out = self._model(token, past_key_values=prefill.cache, use_cache=True)
            for layer, attention in enumerate(self._attentions):
                queries[layer] = [*queries[layer], attention[:, 0]][-LAST_QUERIES:]
            logits.append(out.logits[0, -1])
        prefill.cache.crop(1 - num_tokens)
        return torch.stack(logits).log_softmax(-1)

    @property
    def _even_scores(self) -> Scores:
        return [[1.0] * self.num_kv_heads] * self.num_layers

    def _mask(self, visible: torch.Tensor, length: int) -> torch.Tensor:
        """visible: [H, all tokens]. Returns [1, num_heads, 1, length], added to the logits."""
        mask = torch.zeros(1, self.num_kv_heads * self._group_size, 1, length)
        hidden = (~visible[:, :length]).repeat_interleave(self._group_size, 0)
        mask[0, :, 0].masked_fill_(hidden, float("-inf"))
        return mask

    def _replace_mask(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._masks:
            kwargs["attention_mask"] = self._masks[self._places[module.layer_idx]]
        return args, kwargs

    def _record_attention(
        self, module: Any, args: tuple[Any, ...], result: tuple[Any, ...]
    ) -> None:
        self._attentions.append(result[1][0, :, -LAST_QUERIES:].clone())

    def _compress(
        self, entries: "Entries", num_head_blocks: list[list[int]], is_first: bool, how: Compression
    ) -> list[list[int]]:
        """Hide what heads do not keep. num_head_blocks: n[L][H], which is returned.

        The prompt of an adaptive policy decides it at the first compression.
        """
        num_candidates = full_blocks(entries.num_tokens, how) * how.block_size
        decided = []
        for layer in range(self.num_layers):
            wanted = [
                self._position_scores(entries, layer, head, num_candidates, how)
                for head in range(self.num_kv_heads)
            ]
            allocated = num_head_blocks[layer]
            if is_first and how.policy in ("adakv", "headkv_ada"):
                scores = [list(one.values()) for one in wanted]
                allocated = split(scores, sum(allocated), how.block_size)
            decided.append(allocated)
            for head, number in enumerate(allocated):
                kept = entries.kept.get((layer, head), [])
                best = choose(wanted[head], kept, number * how.block_size, num_candidates, how)
                entries.kept[layer, head] = best
                entries.visible[layer, head, :num_candidates] = False
                entries.visible[layer, head, best] = True
        return decided

    def _position_scores(
        self, entries: "Entries", layer: int, head: int, num_candidates: int, how: Compression
    ) -> dict[int, float]:
        """How much one KV head wants each candidate, by position: first those that it has kept."""
        kept = entries.kept.get((layer, head), [])
        new = [position for position in entries.seen(layer, head) if position not in kept]
        candidates = [*kept, *(position for position in new if position < num_candidates)]
        if how.policy == "streaming":
            in_order = sorted(candidates)
            return {p: math.inf if i < how.sink else float(i) for i, p in enumerate(in_order)}
        first = head * self._group_size
        window = [
            # Later keys of the window have no attention yet.
            torch.nn.functional.pad(query, (0, entries.num_tokens - query.shape[1]))
            for query in entries.queries[layer][-how.window :]
        ]
        votes = torch.stack(window, 1)[first : first + self._group_size]
        # Kept entries are no neighbours as in the text.
        of_kept = reduce_votes(votes[:, :, kept], how)
        of_new = pool_votes(reduce_votes(votes[:, :, new[: -how.window]], how), how)
        scores = [*of_kept, *of_new][: len(candidates)]
        if how.value_norm:
            index = list(self._places)[layer]
            values = entries.cache.layers[index].values[0, head][candidates].tolist()
            sizes = [sum(map(abs, value)) for value in values]
            scores = [score * size for score, size in zip(scores, sizes, strict=True)]
        return dict(zip(candidates, scores, strict=True))


@dataclass(frozen=True)
class Entries:
    """What a request of `num_tokens` tokens attends.

    visible: [L, H, tokens]. queries: for each layer the attention of the last tokens, in order.
    kept: by layer and head, the positions that the head has chosen, the most important one first.
    """

    visible: torch.Tensor
    kept: dict[tuple[int, int], list[int]]
    queries: list[list[torch.Tensor]]
    cache: Any
    num_tokens: int

    def seen(self, layer: int, head: int) -> list[int]:
        """The positions that a head attends."""
        return self.visible[layer, head, : self.num_tokens].nonzero()[:, 0].tolist()


def compression_points(num_prompt_tokens: int, num_tokens: int, how: Compression) -> list[int]:
    """The numbers of tokens at which a request is compressed, in order."""
    if not how.compress_every:
        return [num_prompt_tokens]
    mean = max(1, (how.budget - how.window) // how.block_size)
    point = max(num_prompt_tokens, 2 * mean * how.block_size + how.window)
    every = how_many_blocks(how) * how.block_size
    return list(range(point, num_prompt_tokens + num_tokens, every))


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


def choose(
    wanted: dict[int, float], kept: list[int], number: int, num_candidates: int, how: Compression
) -> list[int]:
    """The `number` positions that a head keeps. Of two equal ones the earlier comes first.

    kept: what it has chosen before. It then keeps a part of these in proportion to the tokens that
    they were chosen from: those that were important then, or are now.
    """
    if not kept or how.policy == "streaming":
        return sorted(wanted, key=lambda p: -wanted[p])[:number]
    blocks = how_many_blocks(how)
    num_blocks = num_candidates // how.block_size
    from_kept = math.ceil(Fraction(number * (num_blocks - blocks), num_blocks))
    now = sorted(kept, key=lambda p: -wanted[p])
    best = sorted(kept, key=lambda p: (min(kept.index(p), 4 * now.index(p)), kept.index(p)))
    new = sorted((p for p in wanted if p not in kept), key=lambda p: -wanted[p])
    parts = ((best, from_kept), (new, number - from_kept))
    chosen = [
        (Fraction(2 * rank + 1, max(1, part)), index, position)
        for index, (ranked, part) in enumerate(parts)
        for rank, position in enumerate(ranked[:part])
    ]
    return [position for _, _, position in sorted(chosen, key=lambda one: one[:2])]


def how_many_blocks(how: Compression) -> int:
    """Between two compressions."""
    return max(how.compress_every // how.block_size, math.ceil(how.window / how.block_size), 1)


def reduce_votes(attention: torch.Tensor, how: Compression) -> list[float]:
    """What the window gives each position. attention: [G, window, positions]."""
    votes = [0.0] * attention.shape[-1]
    queries = attention.flatten(0, 1).tolist()
    for query in queries:
        for position, value in enumerate(query):
            if how.query_reduction == "max":
                votes[position] = max(votes[position], value)
            else:
                votes[position] += value / len(queries)
    return votes


def pool_votes(votes: list[float], how: Compression) -> list[float]:
    """What the window gives each position and its neighbours."""
    half = how.kernel_size // 2
    runs = [votes[max(0, i - half) : i + half + 1] for i in range(len(votes))]
    return [max(run) if how.pooling == "max" else sum(run) / how.kernel_size for run in runs]
