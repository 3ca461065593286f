# SPDX-License-Identifier: Apache-2.0
"""The KV cache as one flat array of head blocks, which the compression reads and writes."""

from typing import Protocol

import torch


class HeadBlocks(Protocol):
    """All head blocks of all layers; see `head_block_tables`.

    num_layers, num_kv_heads: L and H. Block `b` has the head blocks b*L*H .. (b + 1)*L*H - 1.
    """

    num_layers: int
    num_kv_heads: int
    block_size: int
    head_size: int

    def keys(self, head_blocks: torch.Tensor) -> torch.Tensor:
        """Keys. head_blocks: [heads, n] int64. Returns [heads, head_size, n * block_size]."""
        ...

    def values(self, head_blocks: torch.Tensor) -> torch.Tensor:
        """Values. head_blocks: [heads, n] int64. Returns [heads, n * block_size, head_size]."""
        ...

    def copy(self, head_blocks: torch.Tensor, offsets: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy entries. All entries are read before any is written.

        head_blocks, offsets: [n * block_size] int64, the head block of each entry, and the entry's
            offset in it.
        targets: [n] int64, the head blocks that the entries fill in order.
        """
        ...


class UnpackedHeadBlocks:
    """Head blocks as GPUs store them: for each token the key, then the value."""

    def __init__(
        self, flat: torch.Tensor, num_layers: int, num_kv_heads: int, dtype: torch.dtype
    ) -> None:
        """flat: [num_blocks * L * H, block_size, 2 * head_size], contiguous.
        dtype: the model's, of the keys and the values that are read. fp8 entries are not
            multiplied by their scales.
        """
        self.num_layers, self.num_kv_heads = num_layers, num_kv_heads
        self.block_size, self.head_size = flat.shape[1], flat.shape[2] // 2
        self._flat, self._dtype = flat, dtype
        self._words = flat.view(torch.int64)  # for copying entries 8 bytes at a time

    def keys(self, head_blocks: torch.Tensor) -> torch.Tensor:
        keys = self._flat[..., : self.head_size][head_blocks].flatten(1, 2)
        return keys.to(self._dtype).transpose(1, 2)

    def values(self, head_blocks: torch.Tensor) -> torch.Tensor:
        return self._flat[..., self.head_size :][head_blocks].flatten(1, 2).to(self._dtype)

    def copy(self, head_blocks: torch.Tensor, offsets: torch.Tensor, targets: torch.Tensor) -> None:
        entries = self._words[head_blocks, offsets]
        self._words[targets] = entries.unflatten(0, (-1, self.block_size))
