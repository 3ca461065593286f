# SPDX-License-Identifier: Apache-2.0
"""Memory that outlives a step: what a CUDA graph has captured reads where it was."""

from math import prod

import torch


class Buffers:
    """Named int32 and int64 arrays, each as long as was asked for first.

    A smaller one is the beginning of it, so that steps of one size find theirs in one place. Who
    captures graphs asks for the largest sizes of those first; a longer one is the step's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """An array of `shape`, with whatever is in it."""
        size = prod(shape)
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            array = torch.empty(size, dtype=dtype, device=self._device)
            self._arrays.setdefault(name, array)
        assert array.dtype == dtype
        return array[:size].view(shape)
