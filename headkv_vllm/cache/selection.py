# SPDX-License-Identifier: Apache-2.0
"""Which positions each head keeps.

The selection of SnapKV (arXiv 2404.14469), which HeadKV (arXiv 2410.19258) uses unchanged: the
queries of the observation window, the prompt's last tokens, vote on all earlier positions. HeadKV
decides only *how many* positions a head keeps.

All functions work on the KV heads of one or more layers at once, on a CPU or a GPU. None of them
reads a value of a GPU's tensor on the host, except `count_best`, which says so.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from headkv_vllm.budgets.allocation import largest_remainder
from headkv_vllm.config import Settings

Reduction = Literal["mean", "max"]


def window_attention(
    query: torch.Tensor,
    keys: Iterable[torch.Tensor],
    num_tokens: int,
    scale: torch.Tensor | float,
    logits_soft_cap: torch.Tensor | None = None,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """The attention that the window pays to every position, reduced per KV head.

    query: [heads, G, window, head_size], of the prompt's last `window` tokens, for each KV head
        those of its G query heads.
    keys: of the whole prompt, the window included, in pieces of [heads, head_size, n], so that a
        prompt's keys need never be in one place; what follows num_tokens is left out.
    scale, logits_soft_cap: of the attention layers; numbers, or [heads, 1, 1] float32.
    Returns [heads, num_tokens] float32: the softmax over all keys, causal inside the window, and
    of it the mean or the maximum over the window's queries and the KV head's query heads.
    """
    window = query.shape[2]
    logits = _logits(query.flatten(1, 2), keys, num_tokens).mul_(scale)
    if logits_soft_cap is not None:
        logits = logits.div_(logits_soft_cap).tanh_().mul_(logits_soft_cap)
    future = torch.ones(window, window, dtype=torch.bool, device=query.device).triu_(1)
    logits[..., num_tokens - window :].unflatten(1, (-1, window)).masked_fill_(
        future, float("-inf")
    )
    attention = logits.softmax(-1)
    return attention.mean(1) if reduction == "mean" else attention.amax(1)


def _logits(query: torch.Tensor, keys: Iterable[torch.Tensor], num_tokens: int) -> torch.Tensor:
    """[heads, num_queries, num_tokens] float32, for query [heads, num_queries, head_size]."""
    logits = torch.empty(*query.shape[:2], num_tokens, device=query.device)
    start = 0
    for key in keys:
        end = min(start + key.shape[-1], num_tokens)
        logits[..., start:end] = _products(query, key[..., : end - start])
        start = end
    assert start == num_tokens
    return logits


def _products(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """query @ key in float32, whatever their type: [heads, num_queries, n]."""
    if query.is_cuda and query.dtype == key.dtype != torch.float32:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return torch.bmm(query.float(), key.float())


def pool(attention: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Smooth `attention` over neighbouring positions, so that what is kept comes in runs.

    attention: [heads, num_tokens] float32, non-negative. Returns the same shape: maximum or mean
    over `settings.kernel_size` positions; beyond both ends stand zeros.
    """
    padding = settings.kernel_size // 2
    if settings.pooling == "max":
        pooled = functional.max_pool1d(attention[None], settings.kernel_size, 1, padding)
    else:
        pooled = functional.avg_pool1d(attention[None], settings.kernel_size, 1, padding)
    return pooled[0]


def value_norms(value: torch.Tensor) -> torch.Tensor:
    """How much each value can add to the output: its L1 norm, [...] float32 for [..., head_size].

    Attention times this norm is the idea of CriticalKV (arXiv 2502.03805). There the value first
    goes through its head's part of the output projection, which a KV cache does not know.
    """
    return value.float().abs().sum(-1)


def recency(num_positions: int, sink: int, device: torch.device) -> torch.Tensor:
    """Scores [num_positions] float32: the first `sink` positions are best, then the last.

    What StreamingLLM (arXiv 2309.17453) keeps: it needs no attention.
    """
    scores = torch.arange(num_positions, dtype=torch.float32, device=device)
    scores[:sink] = num_positions
    return scores


def count_best(scores: torch.Tensor, num_best: int) -> npt.NDArray[np.int64]:
    """How many of the `num_best` highest `scores` [num_kv_heads, num_tokens] each head has.

    Returns [num_kv_heads] int64, with a sum of num_best. Heads share the places that are left
    for equal scores in proportion to how many of these they have. Waits for a GPU.
    """
    lowest = torch.kthvalue(scores.flatten(), scores.numel() - num_best + 1).values
    is_above, is_equal = scores > lowest, scores == lowest
    above, equal = torch.stack((is_above.sum(1), is_equal.sum(1))).cpu().numpy()
    counts: npt.NDArray[np.int64] = above + largest_remainder(equal, num_best - int(above.sum()))
    return counts


def top_positions(
    scores: torch.Tensor, num_kept: npt.NDArray[np.integer]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of the highest scores of each head, as many as each head keeps.

    scores: [heads, num_tokens]. num_kept: [heads], at most num_tokens each.
    Returns (heads, positions), both [sum(num_kept)] int64: head by head, positions ascending.
    Of positions with the same score, as max-pooling makes them, the earlier ones are kept.
    """
    device, (num_heads, num_tokens) = scores.device, scores.shape
    kept = on_device(num_kept.astype(np.int64), device)
    # A broken model's scores are not numbers; they count as nothing.
    order = scores.nan_to_num(0.0).argsort(dim=1, descending=True, stable=True)
    order = order[:, : int(num_kept.max())]
    rank = torch.arange(order.shape[1], device=device)
    ascending = order.masked_fill(rank >= kept[:, None], num_tokens).sort(1).values
    total = int(num_kept.sum())
    heads = torch.arange(num_heads, device=device).repeat_interleave(kept, output_size=total)
    first = kept.cumsum(0) - kept
    return heads, ascending[heads, torch.arange(total, device=device) - first[heads]]


def on_device(values: npt.NDArray[np.integer], device: torch.device) -> torch.Tensor:
    """A copy of `values` on `device`, which the host does not wait for."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
