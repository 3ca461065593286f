# SPDX-License-Identifier: Apache-2.0
"""Every kernel written plainly, in Python loops: for tests, and for the check on a GPU.

Each function has the name and the arguments of the one that it stands for.
"""

import torch

from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.kernels.dense_tables import DenseTables
from headkv_vllm.kernels.inputs import Buffers, Chunks, DeviceRows, DeviceTokens, LayerInputs
from headkv_vllm.kernels.kv_splits import BLOCK_N, KVSplits


def allocated_head_blocks(
    compressed_blocks: tuple[int, ...], num_head_blocks: torch.Tensor, layer: int, head: int
) -> list[int]:
    """The numbers of the head blocks of one head of one request, by counting.

    num_head_blocks: [L, H], n of this request.
    """
    num_layers, num_kv_heads = num_head_blocks.shape
    heads_per_block = num_layers * num_kv_heads
    of_request = [
        block * heads_per_block + within
        for block in compressed_blocks
        for within in range(heads_per_block)
    ]
    first = int(num_head_blocks.flatten()[: layer * num_kv_heads + head].sum())
    return of_request[first : first + int(num_head_blocks[layer, head])]


def follows_compressed(rows: DeviceRows, chunks: Chunks, request: int) -> bool:
    """Whether the request's new tokens attend what its heads keep of a prompt."""
    row = BlockRow.from_entries(rows.rows[request].tolist())
    starts = chunks.query_start_loc.tolist()
    num_computed = int(chunks.seq_lens[request]) - (starts[request + 1] - starts[request])
    return bool(row.private_blocks) and num_computed >= row.num_prompt_tokens


def attended_head_blocks(rows: DeviceRows, request: int, end: int, layer: int) -> list[list[int]]:
    """The head blocks that each of the layer's heads attends for a token, in order."""
    row = BlockRow.from_entries(rows.rows[request].tolist())
    is_compressed = bool(row.private_blocks) and end > row.num_prompt_tokens
    num_replaced = (row.num_prompt_tokens - rows.window) // rows.block_size if is_compressed else 0
    blocks = row.blocks[num_replaced : -(-end // rows.block_size)]
    shape = (rows.num_layers, rows.num_kv_heads)
    tables = []
    for head in range(rows.num_kv_heads):
        kept = []
        if is_compressed:
            counts = rows.allocations[row.private_blocks[0]].diff().view(shape)
            kept = allocated_head_blocks(row.private_blocks, counts, layer, head)
        own = layer * rows.num_kv_heads + head
        tables.append(kept + [block * rows.heads_per_block + own for block in blocks])
    return tables


def attended_entries(rows: DeviceRows, request: int, end: int, layer: int) -> list[int]:
    """How many entries each of the layer's heads attends for a token: [H]."""
    missing = -end % rows.block_size
    tables = attended_head_blocks(rows, request, end, layer)
    return [len(table) * rows.block_size - missing for table in tables]


def attended(
    query: torch.Tensor, rows: DeviceRows, request: int, end: int, inputs: LayerInputs
) -> torch.Tensor:
    """What one token gets. query: [num_heads, head_size], of the token before position `end`."""
    output, head_size = torch.empty_like(query), query.shape[1]
    groups = output.unflatten(0, (rows.num_kv_heads, -1))
    by_head = zip(
        query.unflatten(0, (rows.num_kv_heads, -1)),
        attended_head_blocks(rows, request, end, inputs.layer),
        attended_entries(rows, request, end, inputs.layer),
        strict=True,
    )
    for head, (queries, table, length) in enumerate(by_head):
        entries = inputs.head_blocks[table].flatten(0, 1)[:length].float()
        key = entries[:, :head_size] * inputs.key_scale
        value = entries[:, head_size:] * inputs.value_scale
        logits = queries.float() @ key.T * inputs.scale
        if inputs.logits_soft_cap > 0:
            logits = inputs.logits_soft_cap * torch.tanh(logits / inputs.logits_soft_cap)
        groups[head] = (logits.softmax(-1) @ value).to(output.dtype)
    return output


def attend_by_head(
    query: torch.Tensor,
    rows: DeviceRows,
    tokens: DeviceTokens,
    splits: KVSplits,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    ends = zip(tokens.requests.tolist(), tokens.ends.tolist(), strict=True)
    for token, (request, end) in enumerate(ends):
        if end:
            output[token] = attended(query[token], rows, request, end, inputs)


def attend_chunks(
    query: torch.Tensor,
    rows: DeviceRows,
    chunks: Chunks,
    inputs: LayerInputs,
    output: torch.Tensor,
    only_by_head: bool = False,
) -> None:
    starts, ends = chunks.query_start_loc.tolist(), chunks.seq_lens.tolist()
    for request in chunks.requests.tolist():
        if only_by_head and not follows_compressed(rows, chunks, request):
            continue
        for token in range(starts[request], starts[request + 1]):
            end = ends[request] - (starts[request + 1] - token) + 1
            output[token] = attended(query[token], rows, request, end, inputs)


def kv_splits(
    rows: DeviceRows, tokens: DeviceTokens, num_splits: int, buffers: Buffers
) -> KVSplits:
    """Places without meaning hold 0."""
    num_seqs = len(tokens.requests) * rows.num_kv_heads
    lengths, firsts, sequences = [], [], []
    for layer in range(rows.num_layers):
        seq_lens = [
            entries if end else 0
            for request, end in zip(tokens.requests.tolist(), tokens.ends.tolist(), strict=True)
            for entries in attended_entries(rows, request, end, layer)
        ]
        split_len = max(1, -(-sum(seq_lens) // (num_splits * BLOCK_N))) * BLOCK_N
        own = [max(min(n, 1), -((split_len // 8 - n) // split_len)) for n in seq_lens]
        owners = [s for s, count in enumerate(own) for _ in range(count)]
        lengths.append(seq_lens)
        firsts.append([sum(own[:s]) for s in range(num_seqs + 1)])
        sequences.append(owners + [0] * (num_seqs + num_splits - len(owners)))
    columns = (lengths, firsts, sequences)
    return KVSplits(*(torch.tensor(values, dtype=torch.int32) for values in columns))


def step_tokens(
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    stock_slot_mapping: torch.Tensor,
    max_query_len: int,
    block_size: int,
    buffers: Buffers,
) -> tuple[DeviceTokens, torch.Tensor]:
    num_tokens = len(stock_slot_mapping)
    requests, ends, slots = [0] * num_tokens, [0] * num_tokens, [-1] * num_tokens
    starts = query_start_loc.tolist()
    for request, seq_len in enumerate(seq_lens.tolist()):
        blocks = BlockRow.from_entries(rows[request].tolist()).blocks
        num_new = starts[request + 1] - starts[request]
        for index in range(num_new):
            position, token = seq_len - num_new + index, starts[request] + index
            requests[token], ends[token] = request, position + 1
            if stock_slot_mapping[token] >= 0:
                block = blocks[position // block_size]
                slots[token] = block * block_size + position % block_size
    columns = (torch.tensor(values, dtype=torch.int32) for values in (requests, ends))
    return DeviceTokens(*columns), torch.tensor(slots, dtype=torch.int64)


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    slot_mapping: torch.Tensor,
    rows: DeviceRows,
    inputs: LayerInputs,
) -> None:
    cache = inputs.head_blocks
    for token, slot in enumerate(slot_mapping.tolist()):
        for head in range(rows.num_kv_heads if slot >= 0 else 0):
            block, offset = divmod(slot, rows.block_size)
            own = inputs.layer * rows.num_kv_heads + head
            scaled = (
                key[token, head].float() / inputs.key_scale,
                value[token, head].float() / inputs.value_scale,
            )
            entry = cache[block * rows.heads_per_block + own, offset]
            # Numbers that are too large become the largest there is, as in GPUs' conversions.
            limits = torch.finfo(cache.dtype)
            entry.copy_(torch.cat(scaled).clamp(limits.min, limits.max).to(cache.dtype))


def dense_tables(rows: DeviceRows, chunks: Chunks) -> DenseTables:
    width = -(-chunks.max_seq_len // rows.block_size)
    tables, seq_lens = [[0] * width for _ in rows.rows], [1] * len(rows.rows)
    for request in chunks.requests.tolist():
        if follows_compressed(rows, chunks, request):
            continue
        seq_lens[request] = int(chunks.seq_lens[request])
        num_blocks = -(-seq_lens[request] // rows.block_size)
        blocks = BlockRow.from_entries(rows.rows[request].tolist()).blocks
        tables[request][:num_blocks] = blocks[:num_blocks]
    device = rows.rows.device
    columns = (torch.tensor(each, dtype=torch.int32, device=device) for each in (tables, seq_lens))
    return DenseTables(*columns)
