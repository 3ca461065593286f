# SPDX-License-Identifier: Apache-2.0
"""Compresses prompts: every head keeps its best entries, in all layers at once.

A step that completes a prompt has the queries of the prompt's observation window in each layer.
`StepCompression` takes them layer by layer. When it has those of all layers (or as many as fit in
memory) `Compressor` scores the prompt's positions, chooses what every head keeps, and copies it
into the head blocks that are allocated to the head. The same code runs on CPUs and GPUs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Bounds
from headkv_vllm.budgets.allocation import HeadBlocks as Allocation
from headkv_vllm.budgets.policies import Policy
from headkv_vllm.cache.block_row import HEADER_SIZE, IntArray
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
"""For each score: the score itself, and what sorting it takes."""


@dataclass(frozen=True)
class Workspace:
    """How much memory the compression may take, in bytes.

    logits: for the window's logits and their softmax, and again for sorting and copying.
    keys: for keys that are gathered at a time. windows: for queries that wait for other layers.
    One head's logits, or one layer's scores, are never divided, whatever they take.
    """

    logits: int
    keys: int
    windows: int

    @property
    def total(self) -> int:
        """What is needed at a time, at most: keys and windows are copied once."""
        return self.logits + 2 * self.keys + 2 * self.windows


CPU_WORKSPACE: Final = Workspace(logits=2**25, keys=2**20, windows=2**26)
"""Keys that are gathered fit in a core's own cache."""
GPU_WORKSPACE: Final = Workspace(logits=2**28, keys=2**26, windows=2**26)


@dataclass(frozen=True)
class PromptCompression:
    """A prompt that a step completes and compresses.

    num_prompt_tokens: T. num_full_blocks: F; the first F * block_size positions may be kept.
    blocks: [ceil(T / block_size)] int64, the prompt's blocks.
    compressed_blocks: [K] int64, c_0 .. c_{K-1}, where the kept entries go.
    policy: the request's.
    allocation: n[L, H], the head blocks that each head keeps. Under an adaptive policy only the
        sums of its layers hold, and the prompt decides how the heads of a layer share them.
    window_start: the place in the batch of the window's first token.
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
    """Of a request whose block-table row is `row`, [width] int32, on any device.

    header: [HEADER_SIZE], the row's header, on the host.
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
    """What the layers do to their logits.

    scales: [L] float32, what queries times stored keys are multiplied by.
    soft_caps: [L] float32; None where no layer has one.
    """

    scales: torch.Tensor
    soft_caps: torch.Tensor | None


class Compressor:
    """Compresses prompts in the head blocks of one worker."""

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
        self, prompt: PromptCompression, windows: torch.Tensor, layers: Sequence[int]
    ) -> Allocation:
        """Copy what each head of some layers keeps of a prompt into its head blocks.

        windows: [len(layers), window, num_heads, head_size], queries of the prompt's last tokens.
        Returns n[len(layers), H], what the heads keep.
        """
        allocation = prompt.allocation[layers]
        # A layer's head blocks come after those of the layers before it.
        starts = prompt.allocation.sum(1).cumsum() - prompt.allocation.sum(1)
        size = self._layers_at_once(prompt)
        for begin in range(0, len(layers), size):
            group = slice(begin, begin + size)
            scores = self._scores(prompt, windows[group], layers[group])
            if prompt.policy.adaptive:
                allocation[group] = self._split(scores, allocation[group], prompt)
            self._keep(prompt, scores, allocation[group], starts[layers[group]], layers[group])
        return allocation

    def _scores(
        self, prompt: PromptCompression, windows: torch.Tensor, layers: Sequence[int]
    ) -> torch.Tensor:
        """How much each KV head wants each position: [len(layers) * H, F * block_size]."""
        device, num_heads = windows.device, len(layers) * self._num_kv_heads
        num_candidates = prompt.num_full_blocks * self._head_blocks.block_size
        if prompt.policy.positions == "recency":
            return recency(num_candidates, self.settings.sink, device).expand(num_heads, -1)
        by_head = windows.unflatten(2, (self._num_kv_heads, -1))  # [l, window, H, G, D]
        query = by_head.permute(0, 2, 3, 1, 4).flatten(0, 1)
        heads = self._heads(layers, device)
        logits_bytes = 8 * query[0, ..., 0].numel() * prompt.num_prompt_tokens
        size = max(1, self.workspace.logits // logits_bytes)
        parts = zip(query.split(size), heads.split(size), strict=True)
        return torch.cat([self._scores_of_heads(prompt, *part) for part in parts])

    def _scores_of_heads(
        self, prompt: PromptCompression, query: torch.Tensor, heads: torch.Tensor
    ) -> torch.Tensor:
        """query: [heads, G, window, head_size]. heads: layer * H + head of each."""
        settings, num_full_blocks = self.settings, prompt.num_full_blocks
        table = prompt.blocks * self._heads_per_block + heads[:, None]
        layers = heads // self._num_kv_heads
        soft_caps = self._logits.soft_caps
        attention = window_attention(
            query,
            map(self._head_blocks.keys, self._pieces(table, query)),
            prompt.num_prompt_tokens,
            self._logits.scales[layers][:, None, None],
            None if soft_caps is None else soft_caps[layers][:, None, None],
            settings.query_reduction,
        )
        num_candidates = num_full_blocks * self._head_blocks.block_size
        pooled = pool(attention[:, : -settings.window], settings)[:, :num_candidates]
        if not settings.value_norm:
            return pooled
        pieces = self._pieces(table[:, :num_full_blocks], query)
        norms = [value_norms(self._head_blocks.values(piece)) for piece in pieces]
        return pooled * torch.cat(norms, 1)

    def _pieces(self, table: torch.Tensor, query: torch.Tensor) -> Iterator[torch.Tensor]:
        """The columns of `table`, as many at a time as fit in the workspace with their keys."""
        bytes_per_column = len(table) * self._head_blocks.block_size * query.shape[-1] * 4
        return iter(table.split(max(1, self.workspace.keys // bytes_per_column), 1))

    def _split(
        self, scores: torch.Tensor, allocation: Allocation, prompt: PromptCompression
    ) -> Allocation:
        """Each layer's head blocks among its heads, as `scores` say."""
        bounds = Bounds(self.settings.min_blocks, prompt.num_full_blocks)
        totals = allocation.sum(1).tolist()
        by_layer = scores.unflatten(0, (len(totals), -1))
        return np.stack(
            [
                split_layer(count_best(each, n * self._head_blocks.block_size), n, bounds)
                for each, n in zip(by_layer, totals, strict=True)
            ]
        )

    def _keep(
        self,
        prompt: PromptCompression,
        scores: torch.Tensor,
        allocation: Allocation,
        starts: IntArray,
        layers: Sequence[int],
    ) -> None:
        """Copy the best positions. starts: where each layer's head blocks begin among K*L*H."""
        block_size, device = self._head_blocks.block_size, scores.device
        heads, positions = top_positions(scores, allocation.ravel() * block_size)
        blocks = prompt.blocks[positions // block_size]
        sources = blocks * self._heads_per_block + self._heads(layers, device)[heads]
        ranges = zip(starts.tolist(), allocation.sum(1).tolist(), strict=True)
        places = on_device(np.concatenate([np.arange(s, s + n) for s, n in ranges]), device)
        targets = prompt.compressed_blocks[places // self._heads_per_block]
        targets = targets * self._heads_per_block + places % self._heads_per_block
        self._head_blocks.copy(sources, positions % block_size, targets)

    def _heads(self, layers: Sequence[int], device: torch.device) -> torch.Tensor:
        """layer * H + head of all KV heads of `layers`: [len(layers) * H] int64."""
        heads = np.arange(self._num_kv_heads)
        return on_device((np.array(layers)[:, None] * self._num_kv_heads + heads).ravel(), device)

    def _layers_at_once(self, prompt: PromptCompression) -> int:
        """As many as can be sorted and copied in the workspace."""
        entry_bytes = 8 * self._head_blocks.head_size  # two copies of a key and a value
        num_kept = len(prompt.compressed_blocks) * self._head_blocks.block_size
        per_head = SORT_BYTES * prompt.num_prompt_tokens + entry_bytes * num_kept
        return max(1, self.workspace.logits // (per_head * self._num_kv_heads))


class Clock(Protocol):
    """Measures how long the prompts of a step take to compress."""

    def measuring(self) -> AbstractContextManager[None]:
        """Some layers of the step's prompts are compressed inside."""
        ...

    def finish(self, num_prompts: int) -> None:
        """All layers are done, of that many prompts, at least one."""
        ...


class StepCompression:
    """Compresses the prompts of one step, as its layers are computed. Lives as long as the step."""

    def __init__(
        self,
        compressor: Compressor,
        window_starts: torch.Tensor,
        prompts: Callable[[], Sequence[PromptCompression | None]],
        record: Callable[[PromptCompression, Allocation], None],
        clock: Clock,
    ) -> None:
        """window_starts: [n] int64, the places in the batch of the first tokens of n windows.

        prompts: those of the windows, asked for when the first layers are compressed; None for a
            window whose prompt turns out not to be compressed in this step.
        record: is told what each head of a prompt keeps, n[L, H], when all layers are compressed.
        """
        window = torch.arange(compressor.settings.window, device=window_starts.device)
        self._compressor, self._tokens = compressor, window_starts[:, None] + window
        self._ask_for_prompts, self._record, self._clock = prompts, record, clock
        self._prompts: list[tuple[int, PromptCompression, Allocation]] | None = None
        self._windows: list[torch.Tensor] = []
        self._layers: list[int] = []
        self._num_layers_done = 0

    def add_layer(self, layer: int, query: torch.Tensor) -> None:
        """Call it for each layer, when its keys and values are in the cache.

        query: [num_tokens, num_heads, head_size], of the step.
        """
        self._windows.append(query[self._tokens])
        self._layers.append(layer)
        num_bytes = len(self._windows) * self._windows[0].nbytes
        if self._is_last or num_bytes >= self._compressor.workspace.windows:
            self._compress_layers()

    @property
    def _is_last(self) -> bool:
        return self._num_layers_done + len(self._layers) == self._compressor.num_layers

    def _compress_layers(self) -> None:
        """Compress the layers that wait, and record the prompts after the last one."""
        is_last, layers = self._is_last, self._layers
        if self._prompts is None:
            self._prompts = [
                (index, prompt, np.zeros_like(prompt.allocation))
                for index, prompt in enumerate(self._ask_for_prompts())
                if prompt is not None
            ]
        if self._prompts:
            windows = torch.stack(self._windows, 1)
            with self._clock.measuring():
                for index, prompt, allocation in self._prompts:
                    kept = self._compressor.compress(prompt, windows[index], layers)
                    allocation[layers] = kept
        self._num_layers_done += len(layers)
        self._windows, self._layers = [], []
        if is_last and self._prompts:
            for _, prompt, allocation in self._prompts:
                self._record(prompt, allocation)
            self._clock.finish(len(self._prompts))
