# SPDX-License-Identifier: Apache-2.0
"""Kernels beside their plain twins, on one state: what a check on a GPU compares."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch

from benchmarks.harness.device_state import (
    BLOCK_SIZE,
    SETTINGS,
    DeviceState,
    Shape,
    made_state,
)
from headkv_vllm.kernels.allotment import first_head_blocks, first_head_blocks_plain
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunk_attention import attend_chunks, attend_chunks_plain
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.head_attention import attend_by_head, attend_by_head_plain
from headkv_vllm.kernels.kept_entries import copy_entries, copy_entries_plain
from headkv_vllm.kernels.kept_positions import kept_positions, kept_positions_plain
from headkv_vllm.kernels.layer_split import split_layers, split_layers_plain
from headkv_vllm.kernels.position_scores import Wanted, position_scores, position_scores_plain
from headkv_vllm.kernels.prompt_tables import prompt_tables, prompt_tables_plain
from headkv_vllm.kernels.rows import DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens, step_tokens_plain
from headkv_vllm.kernels.stored_entries import store_entries, store_entries_plain
from headkv_vllm.kernels.window_scores import window_scores, window_scores_plain
from headkv_vllm.kernels.work_list import (
    WorkList,
    num_programs_of,
    work_list,
    work_list_plain,
)

SMALL: Final = Shape(2, 2, 3, 64, prompt_tokens=(300, 410), kept=4, generated=7)


Check = tuple[str, float, float]
"""What was compared, the largest difference, and the largest that may be."""


def checks(device: torch.device) -> list[Check]:
    state = made_state(SMALL, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    found = [*metadata_checks(state), *attention_check(state), *compaction_checks(state)]
    found += storing_checks(state, state.cache.dtype)
    if device.type != "cuda":
        return found
    if torch.cuda.get_device_capability(device) >= (8, 9):
        found += storing_checks(state, torch.float8_e4m3fn)
    return [*found, *graph_check(state)]


def decode_step(state: DeviceState) -> tuple[DeviceTokens, WorkList]:
    """The metadata of a step in which each request decodes one token."""
    step = (state.rows.rows, state.query_start_loc, state.seq_lens)
    tokens, _ = step_tokens(*step, len(state.seq_lens), 1, BLOCK_SIZE, state.buffers)
    return tokens, work_list(state.rows, tokens, num_programs_of(state.cache.device), state.buffers)


def chunks_of(state: DeviceState) -> Chunks:
    """Each request reads its whole prompt in this step."""
    lengths = state.shape.prompt_tokens
    starts = [sum(lengths[:place]) for place in range(len(lengths) + 1)]
    device = state.seq_lens.device
    columns = (torch.tensor(v, dtype=torch.int32, device=device) for v in (starts, lengths))
    requests = torch.arange(len(lengths), dtype=torch.int32, device=device)
    return Chunks(requests, *columns, max(lengths), max(lengths))


def difference(made: torch.Tensor, plain: torch.Tensor) -> float:
    return (made.cpu().double() - plain.cpu().double()).abs().max().item()


def metadata_checks(state: DeviceState) -> Iterator[Check]:
    rows = state.rows
    step = (rows.rows, state.query_start_loc, state.seq_lens)
    arguments = (*step, state.weights, state.decided, state.sizes, Buffers(rows.rows.device))
    first, plain_first = first_head_blocks(*arguments), first_head_blocks_plain(*arguments)
    yield "head blocks dealt out", difference(first, plain_first), 0
    arguments = (*step, len(state.seq_lens) + 1, 1, BLOCK_SIZE, state.buffers)
    (tokens, slots), (plain_tokens, plain_slots) = (
        step_tokens(*arguments),
        step_tokens_plain(*arguments),
    )
    yield "slots", difference(slots, plain_slots), 0
    yield "ends of tokens", difference(tokens.ends, plain_tokens.ends), 0
    work, plain = (
        work_list(rows, tokens, 8, state.buffers),
        work_list_plain(rows, tokens, 8, state.buffers),
    )
    yield "lengths of heads", difference(work.seq_lens, plain.seq_lens), 0
    yield "pieces of work", difference(work.first_piece, plain.first_piece), 0


def attention_check(state: DeviceState) -> Iterator[Check]:
    tokens, work = decode_step(state)
    query = state.queries(len(state.seq_lens))
    for layer in range(state.shape.num_layers):
        made, plain = torch.empty_like(query), torch.empty_like(query)
        for attend, output in ((attend_by_head, made), (attend_by_head_plain, plain)):
            attend(query, state.rows, tokens, work, state.layer(layer), output)
        yield f"attention by head, layer {layer}", difference(made, plain), 0.02


def compaction_checks(state: DeviceState) -> Iterator[Check]:
    rows, chunks, inputs = state.rows, chunks_of(state), state.layer(0)
    query = state.queries(sum(state.shape.prompt_tokens))
    made, plain = torch.empty_like(query), torch.empty_like(query)
    for attend, output in ((attend_chunks, made), (attend_chunks_plain, plain)):
        attend(query, rows, chunks, inputs, output)
    yield "attention of prompts", difference(made, plain), 0.02
    arguments = (query, rows, chunks, inputs, "mean")
    attention = window_scores(*arguments)
    yield "attention of the window", difference(attention, window_scores_plain(*arguments)), 0.005
    recent = torch.zeros(1, dtype=torch.int32, device=query.device)
    wanted = Wanted(SETTINGS, recent)
    scores = position_scores(attention, rows, chunks, inputs, wanted)
    plain = position_scores_plain(attention, rows, chunks, inputs, wanted)
    yield "scores of positions", difference(scores, plain), 1e-6
    yield from split_checks(state, chunks, scores)
    positions = kept_positions(scores, rows, chunks, 0)
    kept = kept_positions_plain(scores, rows, chunks, 0)
    yield "positions kept", difference(positions, kept), 0
    before = state.cache.clone()
    copy_entries(positions, rows, chunks, inputs)
    made = state.cache.clone()
    state.cache.copy_(before)
    copy_entries_plain(positions, rows, chunks, inputs)
    yield "entries copied", difference(made, state.cache), 0


def split_checks(state: DeviceState, chunks: Chunks, scores: torch.Tensor) -> Iterator[Check]:
    """As under an adaptive policy."""
    adaptive, counts = torch.ones_like(state.decided.adaptive), state.decided.counts
    decided = [Decided(adaptive, counts.clone()) for _ in range(2)]
    rows = [replace(state.rows, first=state.rows.first.clone()) for _ in decided]
    for split, own, to in zip((split_layers, split_layers_plain), rows, decided, strict=True):
        split(scores, own, chunks, 0, to, SETTINGS.min_blocks)
    yield "a layer split by a prompt", difference(decided[0].counts, decided[1].counts), 0
    yield "head blocks after that", difference(rows[0].first, rows[1].first), 0


def storing_checks(state: DeviceState, dtype: torch.dtype) -> Iterator[Check]:
    """dtype: of the cache. Numbers are rounded alike on a GPU and in torch."""
    rows, chunks = state.rows, chunks_of(state)
    made, plain = prompt_tables(rows, chunks), prompt_tables_plain(rows, chunks)
    yield "block tables of prompts", difference(made.block_table, plain.block_table), 0
    num_reqs, shape = len(state.seq_lens), state.shape
    key, value = state.queries(num_reqs)[:, : 2 * shape.num_kv_heads].split(shape.num_kv_heads, 1)
    step = (rows.rows, state.query_start_loc, state.seq_lens)
    _, slots = step_tokens(*step, num_reqs, 1, BLOCK_SIZE, state.buffers)
    caches = []
    for store in (store_entries, store_entries_plain):
        inputs = replace(state.layer(0), head_blocks=torch.zeros_like(state.cache, dtype=dtype))
        store(key, value, slots, rows, inputs)
        caches.append(inputs.head_blocks.float())
    yield f"entries stored as {str(dtype).removeprefix('torch.')}", difference(*caches), 0


def graph_check(state: DeviceState) -> Iterator[Check]:
    """A captured step gives what it gives when launched, also after its requests have grown."""
    query = state.queries(len(state.seq_lens))
    output = torch.empty_like(query)

    def step() -> None:
        tokens, work = decode_step(state)
        attend_by_head(query, state.rows, tokens, work, state.layer(0), output)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    state.seq_lens.add_(1)
    graph.replay()
    replayed = output.clone()
    step()
    yield "a replayed CUDA graph", difference(replayed, output), 0
