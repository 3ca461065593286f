# SPDX-License-Identifier: Apache-2.0
"""Compresses requests: every head keeps its best entries, in many layers at once.

`Compressor` scores the entries that a head attends by the queries of the observation window,
chooses what every head keeps, and copies these entries into the head's own head blocks. CPUs and
GPUs run the same code. A request that is compressed again goes through the same steps: its heads
choose among the entries that they have kept and those of the tokens since.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Allocation, Bounds
from headkv_vllm.cache.head_blocks import HeadBlocks
from headkv_vllm.cache.request_compression import RequestCompression
from headkv_vllm.cache.selection import (
    count_best,
    on_device,
    pool,
    ranked_again,
    ranked_positions,
    recency,
    top_positions,
    value_norms,
    window_attention,
)
from headkv_vllm.config import Settings

SORT_BYTES: Final = 40
"""The memory for one score: the score itself, and what sorting needs."""


@dataclass(frozen=True)
class Workspace:
    """How much memory the compression may use, in bytes.

    logits: for the logits of the observation window and their softmax, and later for sorting and
        copying.
    keys: for the keys that are gathered at a time.
    queries: for the queries of observation windows that wait for other layers.

    The logits of one head and the scores of one layer are never split, even if they need more.
    """

    logits: int
    keys: int
    queries: int

    @property
    def total(self) -> int:
        """The maximum memory at a time, in bytes. Keys and queries are copied once."""
        return self.logits + 2 * self.keys + 2 * self.queries


CPU_WORKSPACE: Final = Workspace(logits=2**25, keys=2**20, queries=2**26)
"""The gathered keys fit in the cache of one core."""
GPU_WORKSPACE: Final = Workspace(logits=2**28, keys=2**26, queries=2**26)


@dataclass(frozen=True)
class Candidates:
    """Where the entries are that some heads attend, before they are compressed.

    heads: [n] int64, layer * H + head of each.
    table: [n, width] int64, the head blocks of each head. Shorter rows begin with padding, so that
        the last tokens are in the same columns.
    padding: [n, 1] int64, the entries of each row that are padding; None if there is none.
    num_tokens: the entries of a row, padding included.
    num_columns: the first columns of `table`, whose entries a head may keep.
    num_kept_columns: the first of these, with padding and with the entries that heads have kept.
    """

    heads: torch.Tensor
    table: torch.Tensor
    padding: torch.Tensor | None
    num_tokens: int
    num_columns: int
    num_kept_columns: int

    def split(self, size: int) -> Iterator["Candidates"]:
        """Parts of at most `size` heads."""
        for start in range(0, len(self.heads), size):
            part = slice(start, start + size)
            padding = None if self.padding is None else self.padding[part]
            yield replace(self, heads=self.heads[part], table=self.table[part], padding=padding)


@dataclass(frozen=True)
class LayerLogits:
    """How the layers scale and cap their logits.

    scales: [L] float32, the factors for the products of queries and stored keys.
    soft_caps: [L] float32; None if no layer has a soft cap.
    sinks: [L * H, G] float32, the logits of attention sinks; None if the model has none.
    """

    scales: torch.Tensor
    soft_caps: torch.Tensor | None
    sinks: torch.Tensor | None = None


class Compressor:
    """Compresses requests in the KV cache of one worker."""

    def __init__(
        self,
        head_blocks: HeadBlocks,
        logits: LayerLogits,
        settings: Settings,
        workspace: Workspace,
    ) -> None:
        self.num_layers, self._num_kv_heads = head_blocks.num_layers, head_blocks.num_kv_heads
        self.settings, self.workspace = settings, workspace
        self._head_blocks, self._logits = head_blocks, logits
        self._heads_per_block = self.num_layers * self._num_kv_heads

    def compress(
        self, compression: RequestCompression, queries: torch.Tensor, layers: Sequence[int]
    ) -> Allocation:
        """Copy the entries that each head of `layers` keeps into the head's head blocks.

        queries: [len(layers), window, num_heads, head_size], of the observation window.
        Returns n[len(layers), H], how many head blocks each head keeps.
        """
        allocation = compression.allocation[layers]
        size = self._layers_at_once(compression)
        for begin in range(0, len(layers), size):
            group = slice(begin, begin + size)
            candidates = self._candidates(compression, layers[group])
            scores = self._scores(compression, queries[group], candidates)
            if compression.policy.adaptive and compression.is_first:
                allocation[group] = self._split_layers(scores, allocation[group], compression)
            self._copy_kept(compression, scores, candidates, allocation[group], layers[group])
        return allocation

    def _candidates(self, compression: RequestCompression, layers: Sequence[int]) -> Candidates:
        """What the heads of `layers` attend so far."""
        block_size, blocks = self._head_blocks.block_size, compression.blocks
        heads = self._layer_heads(layers, blocks.device)
        table = blocks * self._heads_per_block + heads[:, None]
        num_tokens = compression.num_tokens - compression.num_replaced_blocks * block_size
        num_columns = compression.num_new_candidates
        if compression.is_first:
            return Candidates(heads, table, None, num_tokens, num_columns, 0)
        counts = compression.allocation[layers].ravel().astype(np.int64)
        width = int(counts.max())
        all_counts = compression.allocation.ravel()
        starts = (all_counts.cumsum() - all_counts).reshape(compression.allocation.shape)
        # Column `width - 1` of the kept part is the last head block of each head.
        first = starts[layers].ravel() - (width - counts)
        indices = np.maximum(first[:, None] + np.arange(width), 0)
        kept = self._own_head_blocks(compression, on_device(indices, blocks.device))
        return Candidates(
            heads,
            torch.cat((kept, table), 1),
            on_device((width - counts)[:, None] * block_size, blocks.device),
            num_tokens + width * block_size,
            num_columns + width,
            width,
        )

    def _scores(
        self, compression: RequestCompression, queries: torch.Tensor, candidates: Candidates
    ) -> torch.Tensor:
        """The score of each entry that a head may keep: [n, num_columns * block_size].

        Scores are at least 0, and those of padding are -1.
        """
        device, padding = queries.device, candidates.padding
        num_entries = candidates.num_columns * self._head_blocks.block_size
        if compression.policy.positions == "recency":
            sink = self.settings.sink
            scores = recency(num_entries, sink, device, padding).expand(len(candidates.heads), -1)
        else:
            by_head = queries.unflatten(2, (self._num_kv_heads, -1))  # [layers, window, H, G, D]
            query = by_head.permute(0, 2, 3, 1, 4).flatten(0, 1)
            logits_bytes = 8 * query[0, ..., 0].numel() * candidates.num_tokens
            size = max(1, self.workspace.logits // logits_bytes)
            parts = zip(query.split(size), candidates.split(size), strict=True)
            scores = torch.cat([self._scores_of_heads(*part) for part in parts])
        if padding is None:
            return scores
        is_padding = torch.arange(num_entries, device=device) < padding
        return scores.nan_to_num(0.0).masked_fill(is_padding, -1.0)

    def _scores_of_heads(self, query: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        """The scores of some heads: [n, num_columns * block_size].

        query: [n, G, window, head_size].
        """
        settings, table = self.settings, candidates.table
        layers = candidates.heads // self._num_kv_heads
        soft_caps, sinks = self._logits.soft_caps, self._logits.sinks
        attention = window_attention(
            query,
            map(self._head_blocks.keys, self._tiles(table, query)),
            candidates.num_tokens,
            self._logits.scales[layers][:, None, None],
            None if soft_caps is None else soft_caps[layers][:, None, None],
            settings.query_reduction,
            candidates.padding,
            None if sinks is None else sinks[candidates.heads],
        )
        num_entries = candidates.num_columns * self._head_blocks.block_size
        # Kept entries are in the order of importance, so they are no neighbours as in the text.
        num_kept = candidates.num_kept_columns * self._head_blocks.block_size
        kept, others = attention[:, : -settings.window].tensor_split([num_kept], 1)
        pooled = torch.cat((kept, pool(others, settings)), 1)[:, :num_entries]
        if not settings.value_norm:
            return pooled
        tiles = self._tiles(table[:, : candidates.num_columns], query)
        norms = [value_norms(self._head_blocks.values(tile)) for tile in tiles]
        return pooled * torch.cat(norms, 1)

    def _tiles(self, table: torch.Tensor, query: torch.Tensor) -> Iterator[torch.Tensor]:
        """Split the columns of `table`, so that the keys of each part fit in the workspace."""
        bytes_per_column = len(table) * self._head_blocks.block_size * query.shape[-1] * 4
        return iter(table.split(max(1, self.workspace.keys // bytes_per_column), 1))

    def _split_layers(
        self, scores: torch.Tensor, allocation: Allocation, compression: RequestCompression
    ) -> Allocation:
        """`allocation` with the head blocks of each layer split among its heads by `scores`."""
        bounds = Bounds(self.settings.min_blocks, compression.num_full_blocks)
        totals = allocation.sum(1).tolist()
        by_layer = scores.unflatten(0, (len(totals), -1))
        return np.stack(
            [
                split_layer(count_best(each, n * self._head_blocks.block_size), n, bounds)
                for each, n in zip(by_layer, totals, strict=True)
            ]
        )

    def _copy_kept(
        self,
        compression: RequestCompression,
        scores: torch.Tensor,
        candidates: Candidates,
        allocation: Allocation,
        layers: Sequence[int],
    ) -> None:
        """Copy the entries with the highest scores.

        A layer's head blocks stay the layer's, so entries of other layers are not overwritten.
        """
        block_size, device = self._head_blocks.block_size, scores.device
        rows, positions = self._choose(compression, scores, candidates, allocation.ravel())
        sources = candidates.table[rows, positions // block_size]
        # The head blocks of a layer follow those of the layers before it.
        of_layers = compression.allocation.sum(1)
        starts = (of_layers.cumsum() - of_layers)[layers]
        ranges = zip(starts.tolist(), allocation.sum(1).tolist(), strict=True)
        indices = np.concatenate([np.arange(s, s + n) for s, n in ranges])
        targets = self._own_head_blocks(compression, on_device(indices, device))
        self._head_blocks.copy(sources, positions % block_size, targets)

    def _choose(
        self,
        compression: RequestCompression,
        scores: torch.Tensor,
        candidates: Candidates,
        num_head_blocks: IntArray,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of `scores` and the positions in them that heads keep, in their order."""
        block_size = self._head_blocks.block_size
        num_kept = num_head_blocks.astype(np.int64) * block_size
        if not compression.is_repeated or compression.policy.positions == "recency":
            return top_positions(scores, num_kept)
        if compression.is_first:
            return ranked_positions(scores, num_kept)
        padding = candidates.padding
        assert padding is not None, "the entries that heads have kept begin with padding"
        num_old = candidates.num_kept_columns * block_size
        part = (compression.num_replaced_blocks, compression.num_full_blocks)
        return ranked_again(scores, num_kept, num_old, padding, *part)

    def _own_head_blocks(
        self, compression: RequestCompression, indices: torch.Tensor
    ) -> torch.Tensor:
        """Of the K*L*H head blocks of a request, those with these indices; int64."""
        blocks = compression.compressed_blocks[indices // self._heads_per_block]
        return blocks * self._heads_per_block + indices % self._heads_per_block

    def _layer_heads(self, layers: Sequence[int], device: torch.device) -> torch.Tensor:
        """layer * H + head, for all KV heads of `layers`: [len(layers) * H] int64."""
        heads = np.arange(self._num_kv_heads)
        return on_device((np.array(layers)[:, None] * self._num_kv_heads + heads).ravel(), device)

    def _layers_at_once(self, compression: RequestCompression) -> int:
        """How many layers can be sorted and copied at once in the workspace; at least one."""
        block_size = self._head_blocks.block_size
        entry_bytes = 8 * self._head_blocks.head_size  # two copies of a 16-bit key and value
        num_kept = len(compression.compressed_blocks) * block_size
        num_scores = len(compression.blocks) * block_size
        if not compression.is_first:
            num_scores += int(compression.allocation.max()) * block_size
        per_head = SORT_BYTES * num_scores + entry_bytes * num_kept
        return max(1, self.workspace.logits // (per_head * self._num_kv_heads))
