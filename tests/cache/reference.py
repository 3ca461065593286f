# SPDX-License-Identifier: Apache-2.0
"""Plain reference of `headkv_vllm.cache`: loops in place of vector operations.

Each function has the name and the arguments of the function that it is compared with.
"""

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import torch
from torch.nn import functional

from headkv_vllm.arrays import IntArray
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.config import Settings
from headkv_vllm.kernels.reference import allocated_head_blocks


def slot_mapping(
    rows: IntArray, request_indices: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    slots = []
    for request, position in zip(request_indices.tolist(), positions.tolist(), strict=True):
        blocks = BlockRow.from_entries(rows[request].tolist()).blocks
        slots.append(blocks[position // block_size] * block_size + position % block_size)
    return np.array(slots, dtype=np.int64)


def dense_block_table(block_table: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """After the end of a row its last entry is repeated."""
    rows = []
    for row in block_table.tolist():
        blocks = BlockRow.from_entries(row).blocks
        rows.append([blocks[i] if i < len(blocks) else row[-1] for i in range(num_blocks)])
    return torch.tensor(rows, dtype=torch.int32)


def head_block_tables(
    block_table: torch.Tensor,
    num_head_blocks: torch.Tensor,
    num_full_blocks: torch.Tensor,
    seq_lens: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    num_reqs, num_layers, num_kv_heads = num_head_blocks.shape
    tables: dict[tuple[int, int], list[int]] = {}
    for request in range(num_reqs):
        row = BlockRow.from_entries(block_table[request].tolist())
        first_full = int(num_full_blocks[request])
        num_blocks = -(-int(seq_lens[request]) // block_size)
        for layer, head in _layer_heads(num_layers, num_kv_heads):
            kept = allocated_head_blocks(row.private_blocks, num_head_blocks[request], layer, head)
            tail = [
                (block * num_layers + layer) * num_kv_heads + head
                for block in row.blocks[first_full:num_blocks]
            ]
            tables[layer, request * num_kv_heads + head] = kept + tail
    width = max(len(table) for table in tables.values())
    padded = [
        [
            tables[layer, sequence] + [0] * (width - len(tables[layer, sequence]))
            for sequence in range(num_reqs * num_kv_heads)
        ]
        for layer in range(num_layers)
    ]
    return torch.tensor(padded, dtype=torch.int32)


def _layer_heads(num_layers: int, num_kv_heads: int) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(num_layers) for head in range(num_kv_heads)]


def window_attention(
    query: torch.Tensor,
    keys: Iterable[torch.Tensor],
    num_tokens: int,
    scale: float,
    logits_soft_cap: float | None = None,
    reduction: str = "mean",
    padding: None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    key = torch.cat(list(keys), -1)
    num_heads, group_size, window, _ = query.shape
    total, largest = (torch.zeros(num_heads, num_tokens) for _ in range(2))
    for head in range(num_heads):
        for in_group in range(group_size):
            for index in range(window):
                num_visible = num_tokens - window + index + 1
                visible = key[head, :, :num_visible].float()
                logits = query[head, in_group, index].float() @ visible * scale
                if logits_soft_cap is not None:
                    logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
                if sinks is not None:
                    logits = torch.cat((logits, sinks[head, in_group].view(1)))
                attention = torch.softmax(logits, 0)[:num_visible]
                attention = functional.pad(attention, (0, num_tokens - num_visible))
                total[head] += attention
                largest[head] = torch.maximum(largest[head], attention)
    return largest if reduction == "max" else total / (window * group_size)


def pool(attention: torch.Tensor, settings: Settings) -> torch.Tensor:
    half = settings.kernel_size // 2
    pooled = torch.empty_like(attention)
    for head, values in enumerate(attention.tolist()):
        padded = [0.0] * half + values + [0.0] * half
        for position in range(len(values)):
            run = padded[position : position + settings.kernel_size]
            pooled[head, position] = max(run) if settings.pooling == "max" else sum(run) / len(run)
    return pooled


def recency(num_positions: int, sink: int, device: torch.device) -> torch.Tensor:
    positions = range(num_positions)
    return torch.tensor([num_positions if p < sink else p for p in positions], dtype=torch.float32)


def count_best(scores: torch.Tensor, num_best: int) -> IntArray:
    by_head = scores.tolist()
    lowest = sorted((score for head in by_head for score in head), reverse=True)[num_best - 1]
    counts = [sum(score > lowest for score in head) for head in by_head]
    equal = [sum(score == lowest for score in head) for head in by_head]
    left = num_best - sum(counts)
    remainders = [left * number % sum(equal) for number in equal]
    counts = [n + left * number // sum(equal) for n, number in zip(counts, equal, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda head: -remainders[head])
    for head in by_remainder[: num_best - sum(counts)]:
        counts[head] += 1
    return np.array(counts, dtype=np.int64)


def top_positions(
    attention: torch.Tensor, num_kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = []
    for head, values in enumerate(attention.tolist()):
        ranked = sorted(range(len(values)), key=lambda position: -values[position])
        pairs += [(head, position) for position in sorted(ranked[: int(num_kept[head])])]
    heads, positions = zip(*pairs, strict=True)
    return torch.tensor(heads), torch.tensor(positions)


def ranked_positions(scores: torch.Tensor, num_kept: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = []
    for head, values in enumerate(scores.tolist()):
        ranked = sorted(range(len(values)), key=lambda position: -values[position])
        pairs += [(head, position) for position in ranked[: int(num_kept[head])]]
    heads, positions = zip(*pairs, strict=True)
    return torch.tensor(heads), torch.tensor(positions)


def ranked_again(
    scores: torch.Tensor,
    num_kept: IntArray,
    num_old: int,
    padding: torch.Tensor,
    num_blocks_before: int,
    num_blocks: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = []
    for head, values in enumerate(scores.tolist()):
        begin, number = int(padding[head]), int(num_kept[head])
        old = list(range(begin, num_old))
        now = sorted(old, key=lambda position: -values[position])
        best = sorted(old, key=lambda p: (min(p - begin, 4 * now.index(p)), p))
        from_old = math.ceil(Fraction(number * num_blocks_before, num_blocks))
        new = sorted(range(num_old, len(values)), key=lambda position: -values[position])
        chosen = [
            (Fraction(2 * rank + 1, max(part, 1)), is_new, position)
            for is_new, ranked, part in ((0, best, from_old), (1, new, number - from_old))
            for rank, position in enumerate(ranked[:part])
        ]
        pairs += [(head, position) for _, _, position in sorted(chosen, key=lambda c: c[:2])]
    heads, positions = zip(*pairs, strict=True)
    return torch.tensor(heads), torch.tensor(positions)
