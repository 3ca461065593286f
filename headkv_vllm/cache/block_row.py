# SPDX-License-Identifier: Apache-2.0
"""A request's row of the block table: all that a worker knows of a request.

A row is ``[T, K, policy, c_0 .. c_{K-1}, p_0, p_1, ...]``: the prompt length, the number of
compressed blocks, the index of the request's policy in `POLICIES`, the compressed blocks, and the
blocks of the prompt and of what is generated, in order.

A request is *compressed* from the moment its prompt is complete. Until then its prompt is read
from p_0, p_1, ... like that of any request. K = 0 says that it is never compressed.

The scheduler's process writes rows (`BlockRow.entries`), workers read them.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.integer[Any]]

HEADER_SIZE: Final = 3
"""Entries of a row before its first block: T, K and the policy."""


@dataclass(frozen=True)
class BlockRow:
    """One request's row.

    num_prompt_tokens: T. compressed_blocks: c_0 .. c_{K-1}. blocks: p_0, p_1, ...
    policy_index: of `policies.POLICIES`.
    """

    num_prompt_tokens: int
    compressed_blocks: tuple[int, ...]
    blocks: tuple[int, ...]
    policy_index: int

    @classmethod
    def from_entries(cls, row: list[int]) -> "BlockRow":
        """The row whose entries are `row`, as far as it is filled."""
        length, num_compressed, policy_index, *blocks = row
        compressed, others = blocks[:num_compressed], blocks[num_compressed:]
        return cls(length, tuple(compressed), tuple(others), policy_index)

    def entries(self) -> list[int]:
        """The row, as `from_entries` reads it."""
        header = [self.num_prompt_tokens, len(self.compressed_blocks), self.policy_index]
        return [*header, *self.compressed_blocks, *self.blocks]


def num_row_entries(num_compressed: int, num_blocks: int) -> int:
    """Entries of a row with K = `num_compressed` blocks and `num_blocks` blocks of tokens."""
    return HEADER_SIZE + num_compressed + num_blocks


def num_prompt_tokens(rows: IntArray) -> IntArray:
    """T of each of `rows`, [num_reqs, width]: [num_reqs]."""
    return rows[:, 0]


def num_compressed_blocks(rows: IntArray) -> IntArray:
    """K of each of `rows`, [num_reqs, width]: [num_reqs]."""
    return rows[:, 1]


def compressed_blocks(row: IntArray) -> IntArray:
    """c_0 .. c_{K-1} of one row, [width]: [K]."""
    blocks: IntArray = row[HEADER_SIZE : HEADER_SIZE + row[1]]
    return blocks


def slot_mapping(
    rows: IntArray, request_indices: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """Where the key and value of each token are written.

    rows: [num_reqs, width], one per request.
    request_indices: [num_tokens], the row of each token's request.
    positions: [num_tokens], each token's position in its request.
    Returns [num_tokens] int64: slots as vLLM counts them, block * block_size + offset.
    """
    index, offsets = np.divmod(positions, block_size)
    first = HEADER_SIZE + num_compressed_blocks(rows)
    blocks = rows[request_indices, first[request_indices] + index].astype(np.int64)
    slots: IntArray = blocks * block_size + offsets
    return slots


def dense_block_table(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The rows without their headers and compressed blocks: p_0 .. p_{num_blocks-1}.

    block_table: [num_reqs, width] int32. Returns [num_reqs, num_blocks] int32. Entries past a
    row's own length have no meaning, as in any block table.
    """
    first = HEADER_SIZE + block_table[:, 1].long()
    columns = first[:, None] + torch.arange(num_blocks)
    return block_table.gather(1, columns.clamp_(max=block_table.shape[1] - 1))
