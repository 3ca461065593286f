# SPDX-License-Identifier: Apache-2.0
"""Which positions of a prompt each head keeps.

The selection of SnapKV (arXiv 2404.14469), which HeadKV (arXiv 2410.19258) uses unchanged: the
queries of the prompt's last `window` tokens vote on all earlier positions. HeadKV decides only
*how many* positions a head keeps.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from headkv_vllm.budgets.allotment import largest_remainder
from headkv_vllm.config import Settings

Reduction = Literal["mean", "max"]


def window_attention(
    query: torch.Tensor,
    keys: Iterable[torch.Tensor],
    num_tokens: int,
    scale: float,
    logits_soft_cap: float = 0.0,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """The attention that the window pays to every position, reduced per KV head.

    query: [window, num_heads, head_size], of the prompt's last `window` tokens.
    keys: of the whole prompt, the window included, in pieces of [num_kv_heads, head_size, n], so
        that a prompt's keys need never be in one place; what follows num_tokens is left out.
    scale: of the attention layer; logits_soft_cap: of the attention layer, 0 for none.
    Returns [num_kv_heads, num_tokens] float32: the softmax over all keys, causal inside the
    window, and of it the mean or the maximum over the window's queries and the query heads of
    each KV head, all of them at once.
    """
    window = len(query)
    logits = _logits(query, keys, num_tokens, scale)
    if logits_soft_cap > 0:
        logits = logits.div_(logits_soft_cap).tanh_().mul_(logits_soft_cap)
    future = torch.ones(window, window, dtype=torch.bool, device=query.device).triu_(1)
    logits[..., num_tokens - window :].unflatten(1, (-1, window)).masked_fill_(
        future, float("-inf")
    )
    attention = logits.softmax(-1)
    return attention.mean(1) if reduction == "mean" else attention.amax(1)


def window_attention_plain(
    query: torch.Tensor,
    keys: Iterable[torch.Tensor],
    num_tokens: int,
    scale: float,
    logits_soft_cap: float = 0.0,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Plain twin of `window_attention`."""
    key = torch.cat(list(keys), -1)
    window, num_heads, _ = query.shape
    num_kv_heads = len(key)
    total = torch.zeros(num_kv_heads, num_tokens)
    most = torch.zeros(num_kv_heads, num_tokens)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        for index in range(window):
            num_visible = num_tokens - window + index + 1
            logits = query[index, head].float() @ key[kv_head, :, :num_visible].float() * scale
            if logits_soft_cap > 0:
                logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
            attention = functional.pad(torch.softmax(logits, 0), (0, num_tokens - num_visible))
            total[kv_head] += attention
            most[kv_head] = torch.maximum(most[kv_head], attention)
    return most if reduction == "max" else total / (window * num_heads // num_kv_heads)


def _logits(
    query: torch.Tensor, keys: Iterable[torch.Tensor], num_tokens: int, scale: float
) -> torch.Tensor:
    """[num_kv_heads, G * window, num_tokens] float32, of G query heads for each KV head."""
    logits, start = None, 0
    for key in keys:
        if logits is None:
            num_kv_heads = len(key)
            grouped = query.float().mul(scale).unflatten(1, (num_kv_heads, -1))
            grouped = grouped.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, query.shape[2])
            logits = torch.empty(*grouped.shape[:2], num_tokens, device=query.device)
        end = min(start + key.shape[-1], num_tokens)
        logits[..., start:end] = torch.bmm(grouped, key[..., : end - start].float())
        start = end
    assert logits is not None and start == num_tokens
    return logits


def pool(attention: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Smooth `attention` over neighbouring positions, so that what is kept comes in runs.

    attention: [num_kv_heads, num_tokens] float32, non-negative. Returns the same shape: maximum
    or mean over `settings.kernel_size` positions; beyond both ends stand zeros.
    """
    padding = settings.kernel_size // 2
    if settings.pooling == "max":
        pooled = functional.max_pool1d(attention[None], settings.kernel_size, 1, padding)
    else:
        pooled = functional.avg_pool1d(attention[None], settings.kernel_size, 1, padding)
    return pooled[0]


def pool_plain(attention: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Plain twin of `pool`."""
    half = settings.kernel_size // 2
    pooled = torch.empty_like(attention)
    for head, values in enumerate(attention.tolist()):
        padded = [0.0] * half + values + [0.0] * half
        for position in range(len(values)):
            run = padded[position : position + settings.kernel_size]
            pooled[head, position] = max(run) if settings.pooling == "max" else sum(run) / len(run)
    return pooled


def value_norms(value: torch.Tensor) -> torch.Tensor:
    """How much each value can add to the output: its L1 norm, [...] float32 for [..., head_size].

    Attention times this norm is the idea of CriticalKV (arXiv 2502.03805). There the value first
    goes through its head's part of the output projection, which a KV cache does not know.
    """
    return value.float().abs().sum(-1)


def recency(num_positions: int, sink: int) -> torch.Tensor:
    """Scores [num_positions] int64 by which the first `sink` positions come first, then the last.

    What StreamingLLM (arXiv 2309.17453) keeps: no attention is needed for it.
    """
    scores = torch.arange(num_positions)
    scores[:sink] = num_positions
    return scores


def recency_plain(num_positions: int, sink: int) -> torch.Tensor:
    """Plain twin of `recency`."""
    positions = range(num_positions)
    return torch.tensor([num_positions if p < sink else p for p in positions], dtype=torch.int64)


def count_best(scores: torch.Tensor, num_best: int) -> npt.NDArray[np.int64]:
    """How many of the `num_best` highest `scores` [num_kv_heads, num_tokens] each head has.

    Returns [num_kv_heads] int64, with a sum of num_best. Heads share the places that are left
    for equal scores in proportion to how many of these they have.
    """
    lowest = torch.kthvalue(scores.flatten(), scores.numel() - num_best + 1).values
    above = (scores > lowest).sum(1).numpy()
    equal = (scores == lowest).sum(1).numpy()
    return above + largest_remainder(equal, num_best - int(above.sum()))


def count_best_plain(scores: torch.Tensor, num_best: int) -> npt.NDArray[np.int64]:
    """Plain twin of `count_best`."""
    rows = scores.tolist()
    lowest = sorted((score for row in rows for score in row), reverse=True)[num_best - 1]
    counts = [sum(score > lowest for score in row) for row in rows]
    equal = [sum(score == lowest for score in row) for row in rows]
    left = num_best - sum(counts)
    remainders = [left * number % sum(equal) for number in equal]
    counts = [n + left * number // sum(equal) for n, number in zip(counts, equal, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda head: -remainders[head])
    for head in by_remainder[: num_best - sum(counts)]:
        counts[head] += 1
    return np.array(counts, dtype=np.int64)


def top_positions(
    attention: torch.Tensor, num_kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of highest attention of each head, as many as each head keeps.

    attention: [num_kv_heads, num_tokens]. num_kept: [num_kv_heads] int, at most num_tokens each.
    Returns (heads, positions), both [sum(num_kept)] int64: head by head, positions ascending.
    Of positions with the same attention, as max-pooling makes them, the earlier ones are kept.
    """
    attention = attention.nan_to_num(0.0)  # so that a broken model's scores can be compared too
    best = attention.topk(int(num_kept.max()), dim=1).values
    lowest = best.gather(1, (num_kept[:, None] - 1).clamp(min=0).long())
    # Which of equal values topk takes is nowhere defined, so it only says what the least is.
    above, equal = attention > lowest, attention == lowest
    num_left = num_kept[:, None] - above.sum(1, keepdim=True)
    kept = above | (equal & (equal.cumsum(1) <= num_left))
    heads, positions = kept.nonzero(as_tuple=True)
    return heads, positions


def top_positions_plain(
    attention: torch.Tensor, num_kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain twin of `top_positions`."""
    pairs = []
    for head, values in enumerate(attention.tolist()):
        ranked = sorted(range(len(values)), key=lambda position: -values[position])
        pairs += [(head, position) for position in sorted(ranked[: int(num_kept[head])])]
    heads, positions = zip(*pairs, strict=True)
    return torch.tensor(heads), torch.tensor(positions)
