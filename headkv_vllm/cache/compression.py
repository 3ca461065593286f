# SPDX-License-Identifier: Apache-2.0
"""Compresses prompts: every head keeps its best entries, in many layers at once.

When a step completes a prompt, each layer has the queries of the prompt's observation window.
`StepCompression` collects these queries layer by layer. When it has those of all layers, or of as
many layers as fit in memory, `Compressor` scores the prompt's positions, chooses what every head
keeps, and copies these entries into the head's own head blocks. CPUs and GPUs run the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Allocation, Bounds
from headkv_vllm.budgets.policies import Policy
from headkv_vllm.cache.block_row import HEADER_SIZE
from headkv_vllm.cache.head_blocks import HeadBlocks
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.cache.selection import (
    count_best,
    on_device,
    pool,
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
class PromptCompression:
    """A prompt that a step completes and compresses.

    num_prompt_tokens: T. num_full_blocks: F. A head may keep the first F * block_size positions.
    blocks: [ceil(T / block_size)] int64, the blocks of the prompt.
    compressed_blocks: [K] int64, c_0 .. c_{K-1}, where the kept entries are copied to.
    policy: the policy of the request.
    allocation: n[L, H], how many head blocks each head keeps. Under an adaptive policy only the
        sum of each layer is final, and the prompt decides the split among the layer's heads.
    window_start: the index in the batch of the observation window's first token.
    """

    num_prompt_tokens: int
    num_full_blocks: int
    blocks: torch.Tensor
    compressed_blocks: torch.Tensor
    policy: Policy
    allocation: Allocation
    window_start: int


def prompt_compression(
    header: IntArray,
    row: torch.Tensor,
    allocations: RowAllocations,
    num_full_blocks: int,
    block_size: int,
    window_start: int,
) -> PromptCompression:
    """The compression of the prompt of a request, from the request's block-table row.

    header: [HEADER_SIZE], the header of the row, on the host.
    row: [width] int32, the whole row, on any device.
    """
    num_prompt_tokens, num_compressed = int(header[0]), int(header[1])
    first = HEADER_SIZE + num_compressed
    num_blocks = -(-num_prompt_tokens // block_size)
    return PromptCompression(
        num_prompt_tokens,
        num_full_blocks,
        row[first : first + num_blocks].long(),
        row[HEADER_SIZE:first].long(),
        allocations.policy(header),
        allocations.static_allocation(header),
        window_start,
    )


@dataclass(frozen=True)
class LayerLogits:
    """How the layers scale and cap their logits.

    scales: [L] float32, the factors for the products of queries and stored keys.
    soft_caps: [L] float32; None if no layer has a soft cap.
    """

    scales: torch.Tensor
    soft_caps: torch.Tensor | None


class Compressor:
    """Compresses prompts in the KV cache of one worker."""

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
        self, prompt: PromptCompression, queries: torch.Tensor, layers: Sequence[int]
    ) -> Allocation:
        """Copy the entries that each head of `layers` keeps into the head's head blocks.

        queries: [len(layers), window, num_heads, head_size], of the observation window.
        Returns n[len(layers), H], how many head blocks each head keeps.
        """
        allocation = prompt.allocation[layers]
        # The head blocks of a layer follow those of the layers before it.
        starts = prompt.allocation.sum(1).cumsum() - prompt.allocation.sum(1)
        size = self._layers_at_once(prompt)
        for begin in range(0, len(layers), size):
            group = slice(begin, begin + size)
            scores = self._scores(prompt, queries[group], layers[group])
            if prompt.policy.adaptive:
                allocation[group] = self._split_layers(scores, allocation[group], prompt)
            group_starts = starts[layers[group]]
            self._copy_kept(prompt, scores, allocation[group], group_starts, layers[group])
        return allocation

    def _scores(
        self, prompt: PromptCompression, queries: torch.Tensor, layers: Sequence[int]
    ) -> torch.Tensor:
        """The score of each position for each KV head: [len(layers) * H, F * block_size]."""
        device, num_heads = queries.device, len(layers) * self._num_kv_heads
        num_candidates = prompt.num_full_blocks * self._head_blocks.block_size
        if prompt.policy.positions == "recency":
            return recency(num_candidates, self.settings.sink, device).expand(num_heads, -1)
        by_head = queries.unflatten(2, (self._num_kv_heads, -1))  # [layers, window, H, G, D]
        query = by_head.permute(0, 2, 3, 1, 4).flatten(0, 1)
        heads = self._layer_heads(layers, device)
        logits_bytes = 8 * query[0, ..., 0].numel() * prompt.num_prompt_tokens
        size = max(1, self.workspace.logits // logits_bytes)
        parts = zip(query.split(size), heads.split(size), strict=True)
        return torch.cat([self._scores_of_heads(prompt, *part) for part in parts])

    def _scores_of_heads(
        self, prompt: PromptCompression, query: torch.Tensor, heads: torch.Tensor
    ) -> torch.Tensor:
        """The scores of some heads: [heads, F * block_size].

        query: [heads, G, window, head_size]. heads: [heads], layer * H + head of each.
        """
        settings, num_full_blocks = self.settings, prompt.num_full_blocks
        table = prompt.blocks * self._heads_per_block + heads[:, None]
        layers = heads // self._num_kv_heads
        soft_caps = self._logits.soft_caps
        attention = window_attention(
            query,
            map(self._head_blocks.keys, self._tiles(table, query)),
            prompt.num_prompt_tokens,
            self._logits.scales[layers][:, None, None],
            None if soft_caps is None else soft_caps[layers][:, None, None],
            settings.query_reduction,
        )
        num_candidates = num_full_blocks * self._head_blocks.block_size
        pooled = pool(attention[:, : -settings.window], settings)[:, :num_candidates]
        if not settings.value_norm:
            return pooled
        tiles = self._tiles(table[:, :num_full_blocks], query)
        norms = [value_norms(self._head_blocks.values(tile)) for tile in tiles]
        return pooled * torch.cat(norms, 1)

    def _tiles(self, table: torch.Tensor, query: torch.Tensor) -> Iterator[torch.Tensor]:
        """Split the columns of `table`, so that the keys of each part fit in the workspace."""
        bytes_per_column = len(table) * self._head_blocks.block_size * query.shape[-1] * 4
        return iter(table.split(max(1, self.workspace.keys // bytes_per_column), 1))

    def _split_layers(
        self, scores: torch.Tensor, allocation: Allocation, prompt: PromptCompression
    ) -> Allocation:
        """`allocation` with the head blocks of each layer split among its heads by `scores`."""
        bounds = Bounds(self.settings.min_blocks, prompt.num_full_blocks)
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
        prompt: PromptCompression,
        scores: torch.Tensor,
        allocation: Allocation,
        starts: IntArray,
        layers: Sequence[int],
    ) -> None:
        """Copy the entries of the positions with the highest scores.

        starts: [len(layers)], where each layer's head blocks begin among the K * L * H head
            blocks of the request.
        """
        block_size, device = self._head_blocks.block_size, scores.device
        heads, positions = top_positions(scores, allocation.ravel() * block_size)
        blocks = prompt.blocks[positions // block_size]
        sources = blocks * self._heads_per_block + self._layer_heads(layers, device)[heads]
        ranges = zip(starts.tolist(), allocation.sum(1).tolist(), strict=True)
        indices = on_device(np.concatenate([np.arange(s, s + n) for s, n in ranges]), device)
        targets = prompt.compressed_blocks[indices // self._heads_per_block]
        targets = targets * self._heads_per_block + indices % self._heads_per_block
        self._head_blocks.copy(sources, positions % block_size, targets)

    def _layer_heads(self, layers: Sequence[int], device: torch.device) -> torch.Tensor:
        """layer * H + head, for all KV heads of `layers`: [len(layers) * H] int64."""
        heads = np.arange(self._num_kv_heads)
        return on_device((np.array(layers)[:, None] * self._num_kv_heads + heads).ravel(), device)

    def _layers_at_once(self, prompt: PromptCompression) -> int:
        """How many layers can be sorted and copied at once in the workspace; at least one."""
        entry_bytes = 8 * self._head_blocks.head_size  # two copies of a 16-bit key and value
        num_kept = len(prompt.compressed_blocks) * self._head_blocks.block_size
        per_head = SORT_BYTES * prompt.num_prompt_tokens + entry_bytes * num_kept
        return max(1, self.workspace.logits // (per_head * self._num_kv_heads))


class Clock(Protocol):
    """Measures how long it takes to compress the prompts of a step."""

    def measuring(self) -> AbstractContextManager[None]:
        """A context in which some layers of the step's prompts are compressed."""
        ...

    def finish(self, num_prompts: int) -> None:
        """All layers of the step's prompts are compressed. num_prompts: at least 1."""
        ...


class StepCompression:
    """Compresses the prompts of one step while its layers are computed.

    An object serves one step only.
    """

    def __init__(
        self,
        compressor: Compressor,
        window_starts: torch.Tensor,
        prompts: Callable[[], Sequence[PromptCompression | None]],
        record: Callable[[PromptCompression, Allocation], None],
        clock: Clock,
    ) -> None:
        """window_starts: [n] int64, the indices in the batch of the first tokens of n observation
            windows.
        prompts: returns the n prompts. It is called when the first layers are compressed. A prompt
            is None if it is not compressed in this step.
        record: is called with each prompt and its n[L, H] when all layers are compressed.
        """
        window = torch.arange(compressor.settings.window, device=window_starts.device)
        self._compressor, self._tokens = compressor, window_starts[:, None] + window
        self._get_prompts, self._record, self._clock = prompts, record, clock
        self._prompts: list[tuple[int, PromptCompression, Allocation]] | None = None
        self._queries: list[torch.Tensor] = []
        self._layers: list[int] = []
        self._num_layers_done = 0

    def add_layer(self, layer: int, query: torch.Tensor) -> None:
        """Take the queries of a layer. Its keys and values must be in the cache already.

        query: [num_tokens, num_heads, head_size], of all tokens of the step.
        """
        self._queries.append(query[self._tokens])
        self._layers.append(layer)
        num_bytes = len(self._queries) * self._queries[0].nbytes
        if self._is_last or num_bytes >= self._compressor.workspace.queries:
            self._compress_layers()

    @property
    def _is_last(self) -> bool:
        return self._num_layers_done + len(self._layers) == self._compressor.num_layers

    def _compress_layers(self) -> None:
        """Compress the layers that wait. After the last layer, record the prompts."""
        is_last, layers = self._is_last, self._layers
        if self._prompts is None:
            self._prompts = [
                (index, prompt, np.zeros_like(prompt.allocation))
                for index, prompt in enumerate(self._get_prompts())
                if prompt is not None
            ]
        if self._prompts:
            queries = torch.stack(self._queries, 1)
            with self._clock.measuring():
                for index, prompt, allocation in self._prompts:
                    kept = self._compressor.compress(prompt, queries[index], layers)
                    allocation[layers] = kept
        self._num_layers_done += len(layers)
        self._queries, self._layers = [], []
        if is_last and self._prompts:
            for _, prompt, allocation in self._prompts:
                self._record(prompt, allocation)
            self._clock.finish(len(self._prompts))
