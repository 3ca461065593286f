# SPDX-License-Identifier: Apache-2.0
"""The paged cache as vLLM's CPU kernels see it: written by them, read back here.

The kernels' writer packs by instruction set. For one block and head, in order of memory:
"vec" and "vec16" hold keys as ``[head_size, block_size]`` and values as ``[block_size,
head_size]``; "amx" holds keys as ``[block_size/16, head_size/2, 16, 2]`` (token, channel, token,
channel) and values as ``[head_size/16, block_size/2, 16, 2]`` (channel, token, channel, token).
"""

from dataclasses import dataclass

import torch
from vllm import _custom_ops as ops

from headkv_vllm.engine.backends.flat_cache import flat_head_blocks

PACKINGS = ("vec", "vec16", "amx")
"""The instruction sets that can be read back."""


def split_key_value(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The key and value caches that the kernels take, as views.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size]. Returns two of
    [num_blocks, num_kv_heads, block_size, head_size], packed inside each block and head.
    """
    num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    halves = kv_cache.view(num_blocks, num_kv_heads, 2 * block_size, -1)
    return halves[:, :, :block_size], halves[:, :, block_size:]


def gather_keys(kv_cache: torch.Tensor, blocks: torch.Tensor, isa: str) -> torch.Tensor:
    """All keys of `blocks` ([n] int64): [num_kv_heads, head_size, n * block_size]."""
    key_cache, _ = split_key_value(kv_cache)
    packed = key_cache[blocks]
    block_size, head_size = packed.shape[-2:]
    if isa == "amx":
        tiles = packed.flatten(2).unflatten(2, (block_size // 16, head_size // 2, 16, 2))
        by_channel = tiles.permute(1, 3, 5, 0, 2, 4)
        return by_channel.reshape(packed.shape[1], head_size, -1)
    by_channel = packed.flatten(2).unflatten(2, (head_size, block_size))
    return by_channel.permute(1, 2, 0, 3).reshape(packed.shape[1], head_size, -1)


def gather_values(kv_cache: torch.Tensor, blocks: torch.Tensor, isa: str) -> torch.Tensor:
    """All values of `blocks` ([n] int64): [num_kv_heads, n * block_size, head_size]."""
    _, value_cache = split_key_value(kv_cache)
    packed = value_cache[blocks]
    block_size, head_size = packed.shape[-2:]
    if isa == "amx":
        tiles = packed.flatten(2).unflatten(2, (head_size // 16, block_size // 2, 16, 2))
        by_token = tiles.permute(1, 0, 3, 5, 2, 4)
        return by_token.reshape(packed.shape[1], -1, head_size)
    by_token = packed.flatten(2).unflatten(2, (block_size, head_size))
    return by_token.transpose(0, 1).reshape(packed.shape[1], -1, head_size)


def gather_entries(
    kv_cache: torch.Tensor,
    blocks: torch.Tensor,
    heads: torch.Tensor,
    offsets: torch.Tensor,
    isa: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The key and the value at each (block, head, offset in the block), all [n] int64.

    Returns two of [n, head_size].
    """
    key_cache, value_cache = (cache.flatten(2) for cache in split_key_value(kv_cache))
    block_size, head_size = kv_cache.shape[2], kv_cache.shape[3] // 2
    if isa == "amx":
        keys = key_cache.unflatten(2, (block_size // 16, head_size // 2, 16, 2))
        values = value_cache.unflatten(2, (head_size // 16, block_size // 2, 16, 2))
        key = keys[blocks, heads, offsets // 16, :, offsets % 16]
        value = values[blocks, heads, :, offsets // 2, :, offsets % 2]
        return key.flatten(1), value.flatten(1)
    keys = key_cache.unflatten(2, (head_size, block_size))
    values = value_cache.unflatten(2, (block_size, head_size))
    return keys[blocks, heads, :, offsets], values[blocks, heads, offsets]


@dataclass(frozen=True)
class PagedCache:
    """A cache as the kernels take it, and what packs and reads it.

    key, value: [num_blocks, num_kv_heads, block_size, head_size], packed inside each block and
        head; see `split_key_value`.
    isa: the instruction set that decides the packing.
    """

    key: torch.Tensor
    value: torch.Tensor
    isa: str

    def write(self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Write entries. key, value: [n, num_kv_heads, head_size]; slots: [n] int64."""
        ops.cpu_attn_reshape_and_cache(key, value, self.key, self.value, slots, self.isa)


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache, seen in both ways; made once, for a view costs as much as a small step.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size]. whole: blocks of tokens, of
    this layer. by_head: head blocks, of all layers, with one KV head.
    """

    kv_cache: torch.Tensor
    whole: PagedCache
    by_head: PagedCache

    @classmethod
    def of(
        cls, kv_cache: torch.Tensor, layer_index: int, num_layers: int, isa: str
    ) -> "LayerCache":
        """kv_cache: the view of layer `layer_index`."""
        flat = flat_head_blocks(kv_cache, layer_index, num_layers)
        paged = (PagedCache(*split_key_value(cache), isa) for cache in (kv_cache, flat))
        return cls(kv_cache, *paged)
