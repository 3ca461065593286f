# SPDX-License-Identifier: Apache-2.0
"""Which positions of a prompt each head keeps.

The selection of SnapKV (arXiv 2404.14469), which HeadKV (arXiv 2410.19258) uses unchanged: the
queries of the prompt's last `window` tokens vote on all earlier positions. HeadKV decides only
*how many* positions a head keeps.
"""

import torch
from torch.nn import functional

from headkv_vllm.config import Settings


def window_attention(
    query: torch.Tensor, key: torch.Tensor, scale: float, logits_soft_cap: float = 0.0
) -> torch.Tensor:
    """The attention that the window pays to every position, averaged per KV head.

    query: [window, num_heads, head_size], of the prompt's last `window` tokens.
    key: [num_kv_heads, head_size, num_tokens], of the whole prompt, the window included.
    scale: of the attention layer; logits_soft_cap: of the attention layer, 0 for none.
    Returns [num_kv_heads, num_tokens] float32: the softmax over all keys, causal inside the
    window, averaged over the window's queries and the query heads of each KV head.
    """
    window, num_heads, head_size = query.shape
    num_kv_heads, _, num_tokens = key.shape
    grouped = query.view(window, num_kv_heads, num_heads // num_kv_heads, head_size)
    grouped = grouped.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_size)
    logits = torch.bmm(grouped.float(), key.float()).mul_(scale)
    if logits_soft_cap > 0:
        logits = logits.div_(logits_soft_cap).tanh_().mul_(logits_soft_cap)
    logits = logits.view(num_kv_heads, -1, window, num_tokens)
    future = torch.ones(window, window, dtype=torch.bool, device=key.device).triu_(1)
    logits[..., num_tokens - window :].masked_fill_(future, float("-inf"))
    return logits.softmax(-1).mean((1, 2))


def window_attention_plain(
    query: torch.Tensor, key: torch.Tensor, scale: float, logits_soft_cap: float = 0.0
) -> torch.Tensor:
    """Plain twin of `window_attention`."""
    window, num_heads, _ = query.shape
    num_kv_heads, _, num_tokens = key.shape
    total = torch.zeros(num_kv_heads, num_tokens)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        for index in range(window):
            num_visible = num_tokens - window + index + 1
            logits = query[index, head].float() @ key[kv_head, :, :num_visible].float() * scale
            if logits_soft_cap > 0:
                logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
            total[kv_head, :num_visible] += torch.softmax(logits, 0)
    return total / (window * num_heads // num_kv_heads)


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


def top_positions(
    attention: torch.Tensor, num_kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of highest attention of each head, as many as each head keeps.

    attention: [num_kv_heads, num_tokens]. num_kept: [num_kv_heads] int, at most num_tokens each.
    Returns (heads, positions), both [sum(num_kept)] int64: head by head, positions ascending.
    Of positions with the same attention, as max-pooling makes them, the earlier ones are kept.
    """
    most = int(num_kept.max())
    # Not topk: which of equal values it takes is nowhere defined.
    best = attention.sort(dim=1, descending=True, stable=True).indices[:, :most]
    rank = torch.arange(most, device=attention.device)
    unused = attention.shape[1]
    kept = best.masked_fill(rank >= num_kept[:, None], unused).sort(dim=1).values
    heads, ranks = torch.nonzero(kept < unused, as_tuple=True)
    return heads, kept[heads, ranks]


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
