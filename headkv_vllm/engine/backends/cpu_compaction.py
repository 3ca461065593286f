# SPDX-License-Identifier: Apache-2.0
"""Compresses a prompt in one layer: scores its positions, and copies what each head keeps.

No prompt's keys or values are ever copied as a whole: they are read in pieces, and the attention
of so many heads at a time as fit in `LOGITS_BYTES`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from headkv_vllm.batch import Compression
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allotment import Bounds
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.config import Settings
from headkv_vllm.engine.backends.cpu_cache import (
    LayerCache,
    gather_entries,
    gather_keys,
    gather_values,
)
from headkv_vllm.selection import (
    count_best,
    pool,
    recency,
    top_positions,
    value_norms,
    window_attention,
)

PIECE_BYTES = 2**20
"""Keys that are unpacked at once: as many as the core's own cache holds."""

LOGITS_BYTES = 2**24
"""The most that the window's logits may take."""


@dataclass(frozen=True)
class LayerAttention:
    """What a layer's attention does to its logits, and which layer it is."""

    layer_index: int
    scale: float
    logits_soft_cap: float


def compress(
    window: torch.Tensor,
    cache: LayerCache,
    compression: Compression,
    attention: LayerAttention,
    settings: Settings,
    live: LiveAllotments,
) -> None:
    """Copy what each head keeps of a prompt into its head blocks.

    window: [settings.window, num_heads, head_size], the queries of the prompt's last tokens.
    live: where the prompt records what it decides, under an adaptive policy.
    """
    kv_cache, layer_index = cache.kv_cache, attention.layer_index
    block_size = kv_cache.shape[2]
    scores = _position_scores(window, cache, compression, attention, settings)
    num_head_blocks = compression.num_head_blocks[layer_index]
    if compression.policy.adaptive:
        num_head_blocks = _split(scores, num_head_blocks, block_size, settings)
        live.record(compression.compressed_blocks, layer_index, num_head_blocks.numpy())
    heads, positions = top_positions(scores, num_head_blocks * block_size)
    blocks, offsets = compression.blocks[positions // block_size], positions % block_size
    key, value = gather_entries(kv_cache, blocks, heads, offsets, cache.whole.isa)
    cache.by_head.write(key[:, None], value[:, None], compression.slots[layer_index])


def _position_scores(
    window: torch.Tensor,
    cache: LayerCache,
    compression: Compression,
    attention: LayerAttention,
    settings: Settings,
) -> torch.Tensor:
    """How much each KV head wants each position: [num_kv_heads, num_candidates]."""
    num_kv_heads, num_candidates = cache.kv_cache.shape[1], compression.num_candidates
    if compression.policy.positions == "recency":
        return recency(num_candidates, settings.sink).expand(num_kv_heads, -1)
    scores = _window_attention(window, cache, compression, attention, settings)
    pooled = pool(scores[:, : -settings.window], settings)[:, :num_candidates]
    if not settings.value_norm:
        return pooled
    blocks = compression.blocks[: num_candidates // cache.kv_cache.shape[2]]
    isa, size = cache.whole.isa, _piece_blocks(cache.kv_cache)
    values = (gather_values(cache.kv_cache, piece, isa) for piece in blocks.split(size))
    return pooled * torch.cat([value_norms(value) for value in values], 1)


def _window_attention(
    window: torch.Tensor,
    cache: LayerCache,
    compression: Compression,
    attention: LayerAttention,
    settings: Settings,
) -> torch.Tensor:
    """[num_kv_heads, num_prompt_tokens] float32, some heads at a time."""
    num_kv_heads, num_tokens = cache.kv_cache.shape[1], compression.num_prompt_tokens
    by_head = window.unflatten(1, (num_kv_heads, -1))
    bytes_per_head = 4 * by_head[:, 0].numel() // window.shape[2] * num_tokens
    heads_at_once = max(1, LOGITS_BYTES // bytes_per_head)
    layer = (attention.scale, attention.logits_soft_cap, settings.query_reduction)
    parts = [
        window_attention(
            by_head[:, start : start + heads_at_once].flatten(1, 2),
            _keys(cache, compression.blocks, slice(start, start + heads_at_once)),
            num_tokens,
            *layer,
        )
        for start in range(0, num_kv_heads, heads_at_once)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _keys(cache: LayerCache, blocks: torch.Tensor, heads: slice) -> Iterator[torch.Tensor]:
    """The keys of `heads`, some blocks at a time: [len(heads), head_size, n]."""
    kv_cache = cache.kv_cache[:, heads]
    for piece in blocks.split(_piece_blocks(kv_cache)):
        yield gather_keys(kv_cache, piece, cache.whole.isa)


def _piece_blocks(kv_cache: torch.Tensor) -> int:
    """As many blocks as have keys of `PIECE_BYTES`."""
    return max(1, PIECE_BYTES // (kv_cache[0].nbytes // 2))


def _split(
    scores: torch.Tensor, num_head_blocks: torch.Tensor, block_size: int, settings: Settings
) -> torch.Tensor:
    """A layer's head blocks among its heads, [num_kv_heads] int32, as `scores` say."""
    total = int(num_head_blocks.sum())
    bounds = Bounds(settings.min_blocks, scores.shape[1] // block_size)
    return torch.from_numpy(split_layer(count_best(scores, total * block_size), total, bounds))
