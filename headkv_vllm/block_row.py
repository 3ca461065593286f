# SPDX-License-Identifier: Apache-2.0
"""A request's row of the block table, and the head-block tables that are read off it.

A row is ``[T, K, policy, c_0 .. c_{K-1}, p_0, p_1, ...]``: the prompt length, the number of
compressed blocks, the request's policy by its place in the registry, the compressed blocks, and
the blocks of the prompt and of what is generated, in order. The row is all that a worker knows of
a request.

Head block ``(b, l, h)`` is the part of block `b` that belongs to layer `l` and KV head `h`. In a
cache that stores blocks outermost, then layers, then heads, it is number ``(b*L + l)*H + h`` of
one flat array. The K*L*H head blocks of a request's compressed blocks are dealt out to its heads
in the order of ``(l, h)``: the first n[0, 0] to head (0, 0), the next n[0, 1] to head (0, 1), ...

A request is *compressed* from the moment its prompt is complete; until then its prompt is read
from p_0, p_1, ... like that of any request, and K = 0 says that it never will be.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.integer[Any]]

HEADER_SIZE = 3
"""Entries of a row before its first block: T, K and the policy."""


@dataclass(frozen=True)
class BlockRow:
    """One request's row, taken apart.

    num_prompt_tokens: T. compressed_blocks: c_0 .. c_{K-1}. blocks: p_0, p_1, ...
    policy_index: see `budgets.registry`.
    """

    num_prompt_tokens: int
    compressed_blocks: tuple[int, ...]
    blocks: tuple[int, ...]
    policy_index: int

    @classmethod
    def parse(cls, row: list[int]) -> "BlockRow":
        """Take `row`, as long as it is filled, apart."""
        length, num_compressed, policy_index, *blocks = row
        compressed, others = blocks[:num_compressed], blocks[num_compressed:]
        return cls(length, tuple(compressed), tuple(others), policy_index)

    def entries(self) -> list[int]:
        """The row: what `parse` takes."""
        header = [self.num_prompt_tokens, len(self.compressed_blocks), self.policy_index]
        return [*header, *self.compressed_blocks, *self.blocks]


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


def num_row_entries(num_compressed: int, num_blocks: int) -> int:
    """Entries of a row with K = `num_compressed` blocks and `num_blocks` blocks of tokens."""
    return HEADER_SIZE + num_compressed + num_blocks


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


def slot_mapping_plain(
    rows: IntArray, request_indices: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """Plain twin of `slot_mapping`."""
    slots = []
    for request, position in zip(request_indices.tolist(), positions.tolist(), strict=True):
        blocks = BlockRow.parse(rows[request].tolist()).blocks
        slots.append(blocks[position // block_size] * block_size + position % block_size)
    return np.array(slots, dtype=np.int64)


def token_block_table(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The rows without their headers and compressed blocks: p_0 .. p_{num_blocks-1}.

    block_table: [num_reqs, width] int32. Returns [num_reqs, num_blocks] int32. Entries past a
    row's own length are of no meaning, as in any block table.
    """
    first = HEADER_SIZE + block_table[:, 1].long()
    columns = first[:, None] + torch.arange(num_blocks)
    return block_table.gather(1, columns.clamp_(max=block_table.shape[1] - 1))


def token_block_table_plain(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Plain twin of `token_block_table`; entries past a row's end repeat its last one."""
    rows = []
    for row in block_table.tolist():
        blocks = BlockRow.parse(row).blocks
        rows.append([blocks[i] if i < len(blocks) else row[-1] for i in range(num_blocks)])
    return torch.tensor(rows, dtype=torch.int32)


def head_seq_lens(
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """How many entries each head of a compressed request attends.

    num_head_blocks: [num_reqs, L, H] int32, n: head blocks that each head keeps.
    num_full_blocks: [num_reqs] int32, F: the prompt blocks that they replace.
    seq_lens: [num_reqs] int32, tokens of the request.
    Returns [L, num_reqs*H] int32: n * block_size + (seq_len - F * block_size).
    """
    kept = num_head_blocks - num_full_blocks[:, None, None]
    return (kept * block_size + seq_lens[:, None, None]).transpose(0, 1).flatten(1).int()


def head_block_tables(
    block_table: torch.Tensor,
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """Block tables that make each head of a compressed request a sequence of its own.

    Arguments as for `head_seq_lens`, and block_table: [num_reqs, width] int32.
    Returns [L, num_reqs*H, table_width] int32, numbers of head blocks: the n[l, h] that the head
    keeps, then those of the blocks from index F on. Entries past a head's length are 0.
    """
    num_reqs, num_layers, num_kv_heads = num_head_blocks.shape
    heads_per_block = num_layers * num_kv_heads
    kept = num_head_blocks.reshape(num_reqs, heads_per_block, 1).long()
    first = kept.cumsum(1) - kept
    num_tail_blocks = (seq_lens - num_full_blocks * block_size + block_size - 1) // block_size
    lengths = kept + num_tail_blocks[:, None, None]

    index = torch.arange(int(lengths.max()))
    head_block = first + index
    is_kept = index < kept
    first_tail = block_table[:, 1] + num_full_blocks
    tail_column = first_tail[:, None, None] + index - kept
    column = HEADER_SIZE + torch.where(is_kept, head_block // heads_per_block, tail_column)
    column.clamp_(max=block_table.shape[1] - 1)
    own = torch.arange(heads_per_block)[:, None]
    within = torch.where(is_kept, head_block % heads_per_block, own)
    blocks = block_table.gather(1, column.flatten(1)).view_as(column)
    tables = torch.where(index < lengths, blocks * heads_per_block + within, 0).int()
    by_layer = tables.view(num_reqs, num_layers, num_kv_heads, -1).transpose(0, 1)
    return by_layer.flatten(1, 2)


def head_block_tables_plain(
    block_table: torch.Tensor,
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """Plain twin of `head_block_tables`."""
    num_reqs, num_layers, num_kv_heads = num_head_blocks.shape
    tables: dict[tuple[int, int], list[int]] = {}
    for request in range(num_reqs):
        row = BlockRow.parse(block_table[request].tolist())
        first_full = int(num_full_blocks[request])
        num_blocks = -(-int(seq_lens[request]) // block_size)
        for layer, head in _layer_heads(num_layers, num_kv_heads):
            own = head_blocks(row.compressed_blocks, num_head_blocks[request], layer, head)
            tail = [
                (block * num_layers + layer) * num_kv_heads + head
                for block in row.blocks[first_full:num_blocks]
            ]
            tables[layer, request * num_kv_heads + head] = own + tail
    width = max(len(table) for table in tables.values())
    padded = [
        [
            tables[layer, sequence] + [0] * (width - len(tables[layer, sequence]))
            for sequence in range(num_reqs * num_kv_heads)
        ]
        for layer in range(num_layers)
    ]
    return torch.tensor(padded, dtype=torch.int32)


def head_blocks(
    compressed_blocks: tuple[int, ...], num_head_blocks: torch.Tensor, layer: int, head: int
) -> list[int]:
    """The numbers of the head blocks that one head of one request was dealt, by counting.

    num_head_blocks: [L, H], n of this request.
    """
    num_layers, num_kv_heads = num_head_blocks.shape
    heads_per_block = num_layers * num_kv_heads
    dealt = [
        block * heads_per_block + within
        for block in compressed_blocks
        for within in range(heads_per_block)
    ]
    first = int(num_head_blocks.flatten()[: layer * num_kv_heads + head].sum())
    return dealt[first : first + int(num_head_blocks[layer, head])]


def _layer_heads(num_layers: int, num_kv_heads: int) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(num_layers) for head in range(num_kv_heads)]
