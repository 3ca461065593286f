# SPDX-License-Identifier: Apache-2.0
"""Selects the positions that each head keeps.

The selection is that of SnapKV (arXiv 2404.14469). HeadKV (arXiv 2410.19258) uses it unchanged,
and only decides *how many* positions a head keeps. The observation window is the last tokens of
the prompt. The attention of its queries to all earlier positions decides which ones are kept.

All functions work on the KV heads of one or more layers at once, on a CPU or a GPU. On a GPU the
host waits for the device in `count_best` only.
"""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.allocation import largest_remainder
from headkv_vllm.config import Settings

QUERY_REDUCTIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "mean": lambda attention: attention.mean(1),
    "max": lambda attention: attention.amax(1),
}
"""By the names that `Settings.query_reduction` allows: functions of [heads, n, num_tokens].

They return [heads, num_tokens]. n counts the window's queries of all query heads of a KV head.
"""


def max_pool(attention: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """The maximum of `kernel_size` neighbours. attention: [heads, num_tokens], as the result."""
    return functional.max_pool1d(attention[None], kernel_size, 1, kernel_size // 2)[0]


def avg_pool(attention: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """The mean of `kernel_size` neighbours. attention: [heads, num_tokens], as the result."""
    return functional.avg_pool1d(attention[None], kernel_size, 1, kernel_size // 2)[0]


POOLINGS: Final[dict[str, Callable[[torch.Tensor, int], torch.Tensor]]] = {
    "max": max_pool,
    "avg": avg_pool,
}
"""By the names that `Settings.pooling` allows: functions of (attention, kernel_size)."""

NOW_RANK_FACTOR: Final = 4
"""How much less the present window counts than earlier ones, for entries that are chosen again.

With 1, the two orders alternate, and each compression doubles the rank of an old entry that is not
needed now: after a few it is lost. With 4, each fifth place goes to what is important now.
"""


def window_attention(
    query: torch.Tensor,
    keys: Iterable[torch.Tensor],
    num_tokens: int,
    scale: torch.Tensor | float,
    logits_soft_cap: torch.Tensor | None = None,
    reduction: str = "mean",
    padding: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention of the observation window to every position, reduced to one value per KV head.

    query: [heads, G, window, head_size], of the prompt's last `window` tokens. G is the number of
        query heads per KV head.
    keys: tiles of [heads, head_size, n], which together hold the keys of the whole prompt,
        observation window included. Tiles avoid a copy of all keys. Keys after `num_tokens` are
        ignored.
    scale, logits_soft_cap: of the attention layers; numbers, or [heads, 1, 1] float32.
    reduction: one of `QUERY_REDUCTIONS`.
    padding: [heads, 1] int64, how many of each head's first keys are ignored; None for none.
    sinks: [heads, G] float32, the logits of attention sinks, to which a query gives a part of its
        attention; None if the model has none.
    Returns [heads, num_tokens] float32: the softmax over all keys, causal inside the window, and
        then reduced over the window's queries and the KV head's query heads.
    """
    window = query.shape[2]
    logits = _logits(query.flatten(1, 2), keys, num_tokens).mul_(scale)
    if logits_soft_cap is not None:
        logits = logits.div_(logits_soft_cap).tanh_().mul_(logits_soft_cap)
    future = torch.ones(window, window, dtype=torch.bool, device=query.device).triu_(1)
    logits[..., num_tokens - window :].unflatten(1, (-1, window)).masked_fill_(
        future, float("-inf")
    )
    if padding is not None:
        is_padding = torch.arange(num_tokens, device=query.device) < padding
        logits.masked_fill_(is_padding[:, None], float("-inf"))
    attention = logits.softmax(-1)
    if sinks is not None:
        # The part of the attention that the keys get, beside the sink.
        of_sinks = sinks.repeat_interleave(window, 1)
        attention.mul_((logits.logsumexp(-1) - of_sinks).sigmoid_()[..., None])
    return QUERY_REDUCTIONS[reduction](attention)


def _logits(query: torch.Tensor, keys: Iterable[torch.Tensor], num_tokens: int) -> torch.Tensor:
    """query: [heads, num_queries, head_size]. Returns [heads, num_queries, num_tokens] float32."""
    logits = torch.empty(*query.shape[:2], num_tokens, device=query.device)
    start = 0
    for key in keys:
        end = min(start + key.shape[-1], num_tokens)
        logits[..., start:end] = _matmul(query, key[..., : end - start])
        start = end
    assert start == num_tokens
    return logits


def _matmul(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """query @ key in float32, for any dtype of the two: [heads, num_queries, n]."""
    if query.is_cuda and query.dtype == key.dtype != torch.float32:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return torch.bmm(query.float(), key.float())


def pool(attention: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Pool `attention` over neighbouring positions, so that heads keep runs of positions.

    attention: [heads, num_tokens] float32, >= 0.
    Returns the same shape, pooled over `settings.kernel_size` positions. Both ends are padded with
    zeros.
    """
    return POOLINGS[settings.pooling](attention, settings.kernel_size)


def value_norms(value: torch.Tensor) -> torch.Tensor:
    """The L1 norm of each value. value: [..., head_size]. Returns [...] float32.

    CriticalKV (arXiv 2502.03805) multiplies attention by this norm, because a large value adds
    more to the output. In the paper the value first goes through its head's part of the output
    projection. A KV cache does not have this projection.
    """
    return value.float().abs().sum(-1)


def recency(
    num_positions: int, sink: int, device: torch.device, padding: torch.Tensor | None = None
) -> torch.Tensor:
    """Scores for StreamingLLM (arXiv 2309.17453), which needs no attention.

    padding: [heads, 1] int64, how many of each head's first positions do not count.
    Returns [num_positions] or [heads, num_positions] float32: the first `sink` positions have the
    highest score, and the scores of the others grow with the position.
    """
    positions = torch.arange(num_positions, device=device)
    is_sink = positions < (sink if padding is None else padding + sink)
    return positions.float().where(~is_sink, num_positions)


def count_best(scores: torch.Tensor, num_best: int) -> IntArray:
    """How many of the `num_best` highest scores each head has. The host waits for a GPU.

    scores: [num_kv_heads, num_tokens]. Returns [num_kv_heads] int64, with a sum of num_best. If
    several scores equal the lowest of the best, each head gets a part of the remaining count, in
    proportion to how many of these scores it has.
    """
    threshold = torch.kthvalue(scores.flatten(), scores.numel() - num_best + 1).values
    is_above, is_equal = scores > threshold, scores == threshold
    above, equal = torch.stack((is_above.sum(1), is_equal.sum(1))).cpu().numpy()
    counts: IntArray = above + largest_remainder(equal, num_best - int(above.sum()))
    return counts


def top_positions(scores: torch.Tensor, num_kept: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of the highest scores of each head.

    scores: [heads, num_tokens]. num_kept: [heads], how many positions each head keeps, at most
        num_tokens.
    Returns (heads, positions), both [sum(num_kept)] int64, sorted by head and then by position.
    Max-pooling makes many scores equal. Of equal scores, the earlier positions are kept.
    """
    device, num_tokens = scores.device, scores.shape[1]
    kept = on_device(num_kept.astype(np.int64), device)
    # The scores of a broken model may be NaN. They count as 0.
    order = scores.nan_to_num(0.0).argsort(dim=1, descending=True, stable=True)
    order = order[:, : int(num_kept.max())]
    rank = torch.arange(order.shape[1], device=device)
    ascending = order.masked_fill(rank >= kept[:, None], num_tokens).sort(1).values
    return _first_of_rows(ascending, num_kept)


def ranked_positions(scores: torch.Tensor, num_kept: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """As `top_positions`, but each head's positions are sorted by score, the highest first."""
    order = scores.nan_to_num(0.0).argsort(dim=1, descending=True, stable=True)
    return _first_of_rows(order, num_kept)


def ranked_again(
    scores: torch.Tensor,
    num_kept: IntArray,
    num_old: int,
    padding: torch.Tensor,
    num_blocks_before: int,
    num_blocks: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What heads keep that choose again, as `ranked_positions`.

    The present window looks at little of what earlier windows chose. If it alone decided, a request
    would soon forget its prompt. So old and new tokens get parts of the budget in proportion to
    their number, as in reservoir sampling, and an old entry stays if it was important when it was
    chosen, or is important now.

    scores: [heads, n], of the present window. The first `num_old` are of the entries that a head
        has kept so far, in the order of their importance, after `padding`. The others are new.
    padding: [heads, 1] int64.
    num_blocks_before, num_blocks: the blocks of tokens before this choice, and with the new ones.
    """
    device = scores.device
    kept = on_device(num_kept, device)[:, None]
    from_old = -(-kept * num_blocks_before // num_blocks)
    from_new = kept - from_old
    old, new = scores.nan_to_num(0.0).tensor_split([num_old], 1)
    earlier = torch.arange(num_old, device=device) - padding
    now = old.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    importance = torch.minimum(earlier, NOW_RANK_FACTOR * now) * num_old + earlier
    old_order = importance.masked_fill(earlier < 0, num_old**2).argsort(dim=1)
    new_order = new.argsort(dim=1, descending=True, stable=True)
    # Both come into one order, each in proportion to its part.
    never = torch.iinfo(torch.int64).max
    old_ranks, new_ranks = (torch.arange(o.shape[1], device=device) for o in (old_order, new_order))
    old_keys = ((2 * old_ranks + 1) * from_new).masked_fill(old_ranks >= from_old, never)
    new_keys = ((2 * new_ranks + 1) * from_old).masked_fill(new_ranks >= from_new, never)
    order = torch.cat((old_keys, new_keys), 1).argsort(dim=1, stable=True)
    return _first_of_rows(torch.cat((old_order, new_order + num_old), 1).gather(1, order), num_kept)


def _first_of_rows(order: torch.Tensor, num_kept: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `num_kept` values of each row, and their rows: two of [sum(num_kept)] int64."""
    kept = on_device(num_kept.astype(np.int64), order.device)
    rows = torch.arange(len(order), device=order.device)
    total = int(num_kept.sum())
    heads = rows.repeat_interleave(kept, output_size=total)
    first = kept.cumsum(0) - kept
    return heads, order[heads, torch.arange(total, device=order.device) - first[heads]]


def on_device(values: IntArray, device: torch.device) -> torch.Tensor:
    """A copy of `values` on `device`. The host does not wait for the copy."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
