# SPDX-License-Identifier: Apache-2.0
"""What is known of a request that a step compresses, from its block-table row."""

from dataclasses import dataclass

import numpy as np
import torch

from headkv_vllm.arrays import IntArray
from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.budgets.policies import Policy
from headkv_vllm.budgets.request import full_blocks
from headkv_vllm.cache.block_row import HEADER_SIZE, intervals, num_private_blocks
from headkv_vllm.cache.row_allocations import RowAllocations


@dataclass(frozen=True)
class RequestCompression:
    """A request that is compressed, for the first time or again.

    num_tokens: the tokens of the request so far. The last ones are its observation window.
    num_replaced_blocks: F of the compression before this one; 0 if this is the first.
    num_full_blocks: F of this compression. A head may keep the entries of the tokens before block
        F: those of the blocks from `num_replaced_blocks` on, and those that it kept so far.
    blocks: int64, the blocks of the tokens from block `num_replaced_blocks` on.
    compressed_blocks: [K] int64, c_0 .. c_{K-1}, where the kept entries are copied to.
    policy: the policy of the request.
    is_repeated: whether the request is compressed again and again. Then its heads keep their
        entries in the order of importance.
    allocation: n[L, H], how many head blocks each head keeps. At the first compression under an
        adaptive policy only the sum of each layer is final, and the prompt decides the split among
        the layer's heads.
    """

    num_tokens: int
    num_replaced_blocks: int
    num_full_blocks: int
    blocks: torch.Tensor
    compressed_blocks: torch.Tensor
    policy: Policy
    is_repeated: bool
    allocation: Allocation

    @property
    def is_first(self) -> bool:
        return self.num_replaced_blocks == 0

    @property
    def num_new_candidates(self) -> int:
        """Blocks of tokens that were not compressed so far and whose entries a head may keep."""
        return self.num_full_blocks - self.num_replaced_blocks


def request_compression(
    header: IntArray, row: torch.Tensor, allocations: RowAllocations, num_tokens: int
) -> RequestCompression:
    """The compression of a request of `num_tokens` tokens, from its block-table row.

    header: the row on the host, or only its header if the request is compressed at its prompt's
        end.
    row: [width] int32, the whole row, on any device.
    """
    points = allocations.points
    ends = np.array(num_tokens)
    num_replaced = int(points.replaced_blocks(header, ends))
    first = HEADER_SIZE + int(num_private_blocks(header))
    num_blocks = -(-num_tokens // points.block_size)
    num_compressed = int(points.num_compressed_blocks(header))
    of_header = allocations.allocation if num_replaced else allocations.static_allocation
    return RequestCompression(
        num_tokens,
        num_replaced,
        full_blocks(num_tokens, points.window, points.block_size),
        row[first + num_replaced : first + num_blocks].long(),
        row[HEADER_SIZE : HEADER_SIZE + num_compressed].long(),
        allocations.policy(header),
        int(intervals(header)) > 0,
        of_header(header),
    )
