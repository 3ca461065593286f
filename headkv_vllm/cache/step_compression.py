# SPDX-License-Identifier: Apache-2.0
"""Compresses the prompts that a step completes, while the step's layers are computed.

When a step completes a prompt, each layer has the queries of the prompt's observation window.
`StepCompression` collects these queries layer by layer. When it has those of all layers, or of as
many layers as fit in memory, it hands them to `Compressor`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.cache.compression import Compressor
from headkv_vllm.cache.request_compression import RequestCompression


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
        prompts: Callable[[], Sequence[RequestCompression | None]],
        record: Callable[[RequestCompression, Allocation], None],
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
        self._prompts: list[tuple[int, RequestCompression, Allocation]] | None = None
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
