# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a step take: rows, tokens, chunks, and what belongs to one layer."""

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class DeviceRows:
    """The block-table rows of a step's requests, and what their heads keep.

    rows: [num_reqs, width] int32, see `cache.block_row`.
    allocations: [num_blocks, L*H + 1] int32. At the index of a compressed request's first
        compressed block: where each head's head blocks begin among the K*L*H of the request, and
        their number. A request writes its own when its prompt is compressed.
    """

    rows: torch.Tensor
    allocations: torch.Tensor
    num_layers: int
    num_kv_heads: int
    block_size: int
    window: int

    @property
    def heads_per_block(self) -> int:
        """Head blocks in a block: L*H."""
        return self.num_layers * self.num_kv_heads


@dataclass(frozen=True)
class DeviceTokens:
    """Tokens of a step.

    requests: [num_tokens] int32, the row of each token's request.
    ends: [num_tokens] int32, its position plus one: what it attends of a request that is not
        compressed. 0 for tokens that only pad a batch.
    """

    requests: torch.Tensor
    ends: torch.Tensor


@dataclass(frozen=True)
class Chunks:
    """Requests that compute several tokens in a step: most of them read their prompts.

    No chunk goes on beyond the end of a prompt that it began in, if that is to be compressed.

    requests: [num_chunks] int32, their rows.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32, up to the end of this step.
    max_seq_len: no request in `requests` comes to more tokens in this step.
    max_query_len: no request in `requests` computes more of them in it.
    """

    requests: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    max_seq_len: int
    max_query_len: int


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's kernels need besides rows.

    head_blocks: [num_head_blocks, block_size, 2 * head_size], of all layers, keys before values.
    key_scale, value_scale: [1] float32; stored entries are the model's divided by these.
    logits_soft_cap: 0 for none.
    """

    layer: int
    head_blocks: torch.Tensor
    scale: float
    logits_soft_cap: float
    key_scale: torch.Tensor
    value_scale: torch.Tensor


class Buffers:
    """Named int32 and int64 arrays that stay where they are: a CUDA graph reads them there.

    An array is as long as the first call asks for. A shorter one is its beginning, so steps of
    one size find theirs in one place. Ask for the largest sizes first, before graphs are
    captured. A longer one is made for the step alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """An array of `shape`, with any content."""
        size = prod(shape)
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            array = torch.empty(size, dtype=dtype, device=self._device)
            self._arrays.setdefault(name, array)
        assert array.dtype == dtype
        return array[:size].view(shape)
