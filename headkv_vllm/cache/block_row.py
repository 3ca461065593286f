# SPDX-License-Identifier: Apache-2.0
"""A request's row of the block table. It holds everything that a worker knows about the request.

A row is ``[T, K, policy, c_0 .. c_{K-1}, p_0, p_1, ...]``: the prompt length, the number of
compressed blocks, the index of the request's policy in `POLICIES`, the compressed blocks, and
the blocks of the request's tokens (prompt and generated tokens) in order.

A request is *compressed* as soon as its prompt is complete. Until then, its tokens attend
p_0, p_1, ..., as in stock vLLM. A request with K = 0 is never compressed.

The scheduler's process writes rows (`BlockRow.entries`), and workers read them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from headkv_vllm.arrays import IntArray

HEADER_SIZE: Final = 3
"""The number of entries before the first block: T, K and the policy."""


@dataclass(frozen=True)
class BlockRow:
    """The row of one request.

    num_prompt_tokens: T. compressed_blocks: c_0 .. c_{K-1}. blocks: p_0, p_1, ...
    policy_index: the index of the policy in `policies.POLICIES`.
    """

    num_prompt_tokens: int
    compressed_blocks: tuple[int, ...]
    blocks: tuple[int, ...]
    policy_index: int

    @classmethod
    def from_entries(cls, row: list[int]) -> "BlockRow":
        """The row with these entries. Entries after the request's last block count as blocks."""
        num_prompt_tokens, num_compressed, policy_index, *blocks = row
        compressed, others = blocks[:num_compressed], blocks[num_compressed:]
        return cls(num_prompt_tokens, tuple(compressed), tuple(others), policy_index)

    def entries(self) -> list[int]:
        """The entries of the row, in the format that `from_entries` reads."""
        header = [self.num_prompt_tokens, len(self.compressed_blocks), self.policy_index]
        return [*header, *self.compressed_blocks, *self.blocks]


def num_row_entries(num_compressed: int, num_blocks: int) -> int:
    """The number of entries of a row with K = `num_compressed` and `num_blocks` other blocks."""
    return HEADER_SIZE + num_compressed + num_blocks


def num_prompt_tokens(rows: IntArray) -> IntArray:
    """T of each row. rows: [num_reqs, width]. Returns [num_reqs]."""
    return rows[:, 0]


def num_compressed_blocks(rows: IntArray) -> IntArray:
    """K of each row. rows: [num_reqs, width]. Returns [num_reqs]."""
    return rows[:, 1]


def compressed_blocks(row: IntArray) -> IntArray:
    """c_0 .. c_{K-1} of one row. row: [width]. Returns [K]."""
    blocks: IntArray = row[HEADER_SIZE : HEADER_SIZE + row[1]]
    return blocks


def slot_mapping(
    rows: IntArray, request_indices: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """The slots where the keys and the values of tokens are written.

    rows: [num_reqs, width].
    request_indices: [num_tokens], for each token the index of its request in `rows`.
    positions: [num_tokens], the position of each token in its request.
    Returns [num_tokens] int64. As in vLLM, a slot is block * block_size + offset.
    """
    index, offsets = np.divmod(positions, block_size)
    first = HEADER_SIZE + num_compressed_blocks(rows)
    blocks = rows[request_indices, first[request_indices] + index].astype(np.int64)
    slots: IntArray = blocks * block_size + offsets
    return slots


def dense_block_table(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The rows without their headers and compressed blocks: p_0 .. p_{num_blocks-1}.

    block_table: [num_reqs, width] int32. Returns [num_reqs, num_blocks] int32. Entries after the
    last block of a request have no meaning, as in any block table.
    """
    first = HEADER_SIZE + block_table[:, 1].long()
    columns = first[:, None] + torch.arange(num_blocks)
    return block_table.gather(1, columns.clamp_(max=block_table.shape[1] - 1))
