# SPDX-License-Identifier: Apache-2.0
"""How long a step's prompts take to compress: each is compressed in every layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from headkv_vllm.engine.worker_table import WorkerTable


class CompactionClock:
    """Adds up each prompt's time over one step's layers, and enters the sums into a table."""

    def __init__(self, num_prompts: int, num_layers: int, table: WorkerTable) -> None:
        self._seconds = [0.0] * num_prompts
        self._layers_left = [num_layers] * num_prompts
        self._table = table

    @contextmanager
    def measuring(self, prompt: int) -> Iterator[None]:
        """Compress one layer of the step's prompt number `prompt` inside."""
        start = perf_counter()
        yield
        self._seconds[prompt] += perf_counter() - start
        self._layers_left[prompt] -= 1
        if self._layers_left[prompt] == 0:
            self._table.add_compaction(self._seconds[prompt])
