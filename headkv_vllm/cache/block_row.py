# SPDX-License-Identifier: Apache-2.0
"""A request's row of the block table. It holds everything that a worker knows about the request.

A row is ``[T, M, policy, interval, m_0 .. m_{M-1}, p_0, p_1, ...]``: the prompt length, the number
of the request's private blocks, the index of its policy in `POLICIES`, after how many blocks of
tokens it is compressed again (0 for never), the private blocks, and the blocks of the request's
tokens (prompt and generated tokens) in order.

The private blocks are the K compressed blocks and, if the request is compressed again, the blocks
for the queries of an observation window; see `cache.window_queries`.

A request is *compressed* from its first compression point on, for most requests the end of their
prompt; see `cache.compression_points`. Until then, its tokens attend p_0, p_1, ..., as in stock
vLLM. A request with M = 0 is never compressed.

The scheduler's process writes rows (`BlockRow.entries`), and workers read them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from headkv_vllm.arrays import IntArray

HEADER_SIZE: Final = 4
"""The number of entries before the first block: T, M, the policy and the interval."""


@dataclass(frozen=True)
class BlockRow:
    """The row of one request.

    num_prompt_tokens: T. private_blocks: m_0 .. m_{M-1}. blocks: p_0, p_1, ...
    policy_index: the index of the policy in `policies.POLICIES`. interval: in blocks.
    """

    num_prompt_tokens: int
    private_blocks: tuple[int, ...]
    blocks: tuple[int, ...]
    policy_index: int
    interval: int = 0

    @classmethod
    def from_entries(cls, row: list[int]) -> "BlockRow":
        """The row with these entries. Entries after the request's last block count as blocks."""
        num_prompt_tokens, num_private, policy_index, interval, *blocks = row
        private, others = blocks[:num_private], blocks[num_private:]
        return cls(num_prompt_tokens, tuple(private), tuple(others), policy_index, interval)

    def entries(self) -> list[int]:
        """The entries of the row, in the format that `from_entries` reads."""
        header = row_header(
            self.num_prompt_tokens, len(self.private_blocks), self.policy_index, self.interval
        )
        return [*header, *self.private_blocks, *self.blocks]


def row_header(
    num_prompt_tokens: int, num_private_blocks: int, policy_index: int, interval: int
) -> list[int]:
    """The first entries of a row."""
    return [num_prompt_tokens, num_private_blocks, policy_index, interval]


def num_row_entries(num_private: int, num_blocks: int) -> int:
    """The number of entries of a row with M = `num_private` and `num_blocks` other blocks."""
    return HEADER_SIZE + num_private + num_blocks


def num_prompt_tokens(rows: IntArray) -> IntArray:
    """T of each row. rows: [num_reqs, width]. Returns [num_reqs]."""
    return rows[..., 0]


def num_private_blocks(rows: IntArray) -> IntArray:
    """M of each row. rows: [num_reqs, width]. Returns [num_reqs]."""
    return rows[..., 1]


def intervals(rows: IntArray) -> IntArray:
    """The interval of each row, in blocks. rows: [num_reqs, width]. Returns [num_reqs]."""
    return rows[..., 3]


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
    first = HEADER_SIZE + num_private_blocks(rows)
    blocks = rows[request_indices, first[request_indices] + index].astype(np.int64)
    slots: IntArray = blocks * block_size + offsets
    return slots


def dense_block_table(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The rows without their headers and private blocks: p_0 .. p_{num_blocks-1}.

    block_table: [num_reqs, width] int32. Returns [num_reqs, num_blocks] int32. Entries after the
    last block of a request have no meaning, as in any block table.
    """
    first = HEADER_SIZE + block_table[:, 1].long()
    columns = first[:, None] + torch.arange(num_blocks)
    return block_table.gather(1, columns.clamp_(max=block_table.shape[1] - 1))
