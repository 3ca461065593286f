# SPDX-License-Identifier: Apache-2.0
"""Which prompts a step on a GPU completes: only their rows on the device say."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.cache.block_row import HEADER_SIZE
from headkv_vllm.cache.request_compression import RequestCompression, request_compression
from headkv_vllm.cache.selection import on_device
from headkv_vllm.engine.attention.layers import WorkerLayers


class CompletedPrompts:
    """Prompts that a step may complete. Their headers are on the way to the host."""

    def __init__(
        self,
        requests: IntArray,
        rows: torch.Tensor,
        seq_lens: torch.Tensor,
        query_lens: IntArray,
        layers: WorkerLayers,
    ) -> None:
        self._requests, self._rows = requests, rows
        self._query_lens, self._layers = query_lens[requests], layers
        places = on_device(requests.astype(np.int64), rows.device)
        ends = seq_lens[places][:, None]
        self._headers = torch.cat((rows[places, :HEADER_SIZE], ends), 1)
        self._wait: Callable[[], None] = lambda: None
        if rows.is_cuda:
            self._headers = self._headers.to("cpu", non_blocking=True)  # to pinned memory
            event = torch.cuda.Event()
            event.record()
            self._wait = event.synchronize

    def prompts(self) -> list[RequestCompression | None]:
        """Those that are complete and are to be compressed, and None in the others' places.

        The host asks when the step's layers are on their way, so the device has long copied.
        """
        self._wait()
        columns = (self._requests, self._query_lens, self._headers.numpy())
        return [self._prompt(*each) for each in zip(*columns, strict=True)]

    def _prompt(
        self, request: int, query_len: int, header: npt.NDArray[np.int32]
    ) -> RequestCompression | None:
        length, num_compressed, _, _, end = header.tolist()
        if not num_compressed or not end - query_len < length <= end:
            return None
        assert end == length, "a step goes on after a prompt that it compresses"
        rows = (header[:HEADER_SIZE], self._rows[request])
        return request_compression(*rows, self._layers.allocations, length)
