# SPDX-License-Identifier: Apache-2.0
"""The paged cache as vLLM's CPU kernels see it: they write it, and the compression reads it.

The kernels' writer packs by instruction set. For one head block, in order of memory: "vec" and
"vec16" hold keys as ``[head_size, block_size]`` and values as ``[block_size, head_size]``. "amx"
holds keys as ``[block_size/16, head_size/2, 16, 2]`` (token, channel, token, channel) and values
as ``[head_size/16, block_size/2, 16, 2]`` (channel, token, channel, token).
"""

from dataclasses import dataclass
from typing import Final

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from headkv_vllm.errors import UnsupportedError

PACKINGS: Final = ("vec", "vec16", "amx")
"""The instruction sets whose packing can be read."""


def packing(dtype: torch.dtype, block_size: int, head_size: int) -> str:
    """The instruction set by which vLLM packs such a cache on this CPU.

    Raises UnsupportedError if its packing is not known.
    """
    isa = _get_attn_isa(dtype, block_size, head_size)
    if isa not in PACKINGS:
        raise UnsupportedError(
            f"--attention-backend headkv cannot read the packing of instruction set "
            f"{isa!r}: allowed are {', '.join(PACKINGS)}"
        )
    return isa


def split_key_value(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The key and value caches that the kernels take, as views.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size]. Returns two of
    [num_blocks, num_kv_heads, block_size, head_size], packed inside each head block.
    """
    num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    halves = kv_cache.view(num_blocks, num_kv_heads, 2 * block_size, -1)
    return halves[:, :, :block_size], halves[:, :, block_size:]


@dataclass(frozen=True)
class PackedCache:
    """A cache as the kernels take it.

    key, value: [num_blocks, num_kv_heads, block_size, head_size], packed; see `split_key_value`.
    isa: the instruction set that decides the packing.
    """

    key: torch.Tensor
    value: torch.Tensor
    isa: str

    @classmethod
    def from_kv_cache(cls, kv_cache: torch.Tensor, isa: str) -> "PackedCache":
        """kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size]."""
        return cls(*split_key_value(kv_cache), isa)

    def write(self, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """key, value: [n, num_kv_heads, head_size]; slot_mapping: [n] int64."""
        ops.cpu_attn_reshape_and_cache(key, value, self.key, self.value, slot_mapping, self.isa)


class PackedHeadBlocks:
    """`cache.head_blocks.HeadBlocks` in the kernels' packing."""

    def __init__(self, flat: torch.Tensor, num_layers: int, num_kv_heads: int, isa: str) -> None:
        """flat: [num_blocks * L * H, block_size, 2 * head_size], contiguous."""
        self.num_layers, self.num_kv_heads = num_layers, num_kv_heads
        self.block_size, self.head_size = flat.shape[1], flat.shape[2] // 2
        self.packed = PackedCache.from_kv_cache(flat[:, None], isa)
        self._keys, self._values = (half.flatten(1) for half in split_key_value(flat[:, None]))
        self._is_amx = isa == "amx"

    def keys(self, head_blocks: torch.Tensor) -> torch.Tensor:
        """head_blocks: [heads, n] int64. Returns [heads, head_size, n * block_size]."""
        packed = self._keys[head_blocks]
        if self._is_amx:
            tiles = packed.unflatten(2, (self.block_size // 16, self.head_size // 2, 16, 2))
            return tiles.permute(0, 3, 5, 1, 2, 4).flatten(1, 2).flatten(2)
        by_channel = packed.unflatten(2, (self.head_size, self.block_size))
        return by_channel.transpose(1, 2).flatten(2)

    def values(self, head_blocks: torch.Tensor) -> torch.Tensor:
        """head_blocks: [heads, n] int64. Returns [heads, n * block_size, head_size]."""
        packed = self._values[head_blocks]
        if self._is_amx:
            tiles = packed.unflatten(2, (self.head_size // 16, self.block_size // 2, 16, 2))
            return tiles.permute(0, 1, 3, 5, 2, 4).flatten(1, 3).flatten(2)
        return packed.unflatten(2, (self.block_size, self.head_size)).flatten(1, 2)

    def copy(self, head_blocks: torch.Tensor, offsets: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy entries, all read before any is written; see `HeadBlocks.copy`."""
        key, value = self._entries(head_blocks, offsets)
        slots = targets[:, None] * self.block_size + torch.arange(self.block_size)
        self.packed.write(key[:, None], value[:, None], slots.flatten())

    def _entries(
        self, head_blocks: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The key and the value at each of n places: two of [n, head_size]."""
        block_size, head_size = self.block_size, self.head_size
        if self._is_amx:
            keys = self._keys.unflatten(1, (block_size // 16, head_size // 2, 16, 2))
            values = self._values.unflatten(1, (head_size // 16, block_size // 2, 16, 2))
            key = keys[head_blocks, offsets // 16, :, offsets % 16]
            value = values[head_blocks, :, offsets // 2, :, offsets % 2]
            return key.flatten(1), value.flatten(1)
        keys = self._keys.unflatten(1, (head_size, block_size))
        values = self._values.unflatten(1, (block_size, head_size))
        return keys[head_blocks, :, offsets], values[head_blocks, offsets]
