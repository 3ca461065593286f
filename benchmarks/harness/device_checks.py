# SPDX-License-Identifier: Apache-2.0
"""Compares the kernels with their references, on this machine's GPU or in Triton's interpreter."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import torch

from benchmarks.harness.device_state import BLOCK_SIZE, SETTINGS, DeviceState, Shape, made_state
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.cache.compression import (
    GPU_WORKSPACE,
    Compressor,
    LayerLogits,
    PromptCompression,
    StepCompression,
)
from headkv_vllm.cache.head_blocks import UnpackedHeadBlocks
from headkv_vllm.kernels import reference
from headkv_vllm.kernels.cache_writes import reshape_and_cache
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.decode_attention import attend_by_head
from headkv_vllm.kernels.dense_tables import dense_tables
from headkv_vllm.kernels.inputs import Chunks, DeviceTokens
from headkv_vllm.kernels.kv_splits import KVSplits, kv_splits, num_splits_of
from headkv_vllm.kernels.step_tokens import step_tokens

SMALL: Final = Shape(2, 2, 3, 64, prompt_tokens=(300, 410), kept=4, generated=7)


Check = tuple[str, float, float]
"""The name of the check, the largest difference, and the largest allowed difference."""


def checks(device: torch.device) -> list[Check]:
    state = made_state(SMALL, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    found = [*metadata_checks(state), *attention_checks(state), *compression_checks(state)]
    found += writing_checks(state, state.cache.dtype)
    if device.type != "cuda":
        return found
    if torch.cuda.get_device_capability(device) >= (8, 9):
        found += writing_checks(state, torch.float8_e4m3fn)
    return [*found, *graph_check(state)]


def decode_step(state: DeviceState) -> tuple[DeviceTokens, KVSplits]:
    """The metadata of a step in which each request decodes one token."""
    tokens, _ = step_tokens(*tokens_of(state), state.buffers)
    num_splits = num_splits_of(state.cache.device)
    return tokens, kv_splits(state.rows, tokens, num_splits, state.buffers)


def tokens_of(state: DeviceState) -> tuple[torch.Tensor, ...]:
    """The arguments of `step_tokens` for that step, without its buffers."""
    stock = torch.zeros_like(state.seq_lens, dtype=torch.int64)
    step = (state.rows.rows, state.query_start_loc, state.seq_lens)
    return (*step, stock, 1, BLOCK_SIZE)  # type: ignore[return-value]


def chunks_of(state: DeviceState) -> Chunks:
    """A step that computes each request's whole prompt."""
    lengths = state.shape.prompt_tokens
    starts = [sum(lengths[:place]) for place in range(len(lengths) + 1)]
    device = state.seq_lens.device
    columns = (torch.tensor(v, dtype=torch.int32, device=device) for v in (starts, lengths))
    requests = torch.arange(len(lengths), dtype=torch.int32, device=device)
    return Chunks(requests, *columns, max(lengths), max(lengths))


def compressor_of(state: DeviceState) -> Compressor:
    """The compressor of all layers of the state."""
    shape, device = state.shape, state.cache.device
    sizes = (shape.num_layers, shape.num_kv_heads, state.cache.dtype)
    scales = torch.full((shape.num_layers,), shape.head_size**-0.5, device=device)
    head_blocks = UnpackedHeadBlocks(state.cache, *sizes)
    return Compressor(head_blocks, LayerLogits(scales, None), SETTINGS, GPU_WORKSPACE)


def prompt_of(state: DeviceState, request: int, policy: str = "headkv") -> PromptCompression:
    """One of the prompts that `chunks_of` completes."""
    row = BlockRow.from_entries(state.rows.rows[request].tolist())
    length, device = row.num_prompt_tokens, state.cache.device
    end = sum(state.shape.prompt_tokens[: request + 1])
    blocks = row.blocks[: -(-length // BLOCK_SIZE)]
    return PromptCompression(
        length,
        (length - SETTINGS.window) // BLOCK_SIZE,
        torch.tensor(blocks, device=device),
        torch.tensor(row.compressed_blocks, device=device),
        POLICIES[policy],  # type: ignore[index]
        state.num_head_blocks[request],
        end - SETTINGS.window,
    )


class NoClock:
    """Measures nothing."""

    def measuring(self) -> nullcontext[None]:
        return nullcontext()

    def finish(self, num_prompts: int) -> None: ...


def compress(compressor: Compressor, prompts: list[PromptCompression], query: torch.Tensor) -> None:
    """Compress a step's prompts in all layers. query: [num_tokens, num_heads, head_size]."""
    starts = torch.tensor([prompt.window_start for prompt in prompts], device=query.device)
    ignore = (lambda: prompts, lambda *_: None, NoClock())
    step = StepCompression(compressor, starts, *ignore)
    for layer in range(compressor.num_layers):
        step.add_layer(layer, query)


def difference(made: torch.Tensor, expected: torch.Tensor) -> float:
    return (made.cpu().double() - expected.cpu().double()).abs().max().item()


def metadata_checks(state: DeviceState) -> Iterator[Check]:
    arguments = (*tokens_of(state), state.buffers)
    (tokens, slots), (plain_tokens, plain_slots) = (
        step_tokens(*arguments),
        reference.step_tokens(*arguments),
    )
    yield "slots", difference(slots, plain_slots), 0
    yield "ends of tokens", difference(tokens.ends, plain_tokens.ends), 0
    splits, plain = (
        one(state.rows, tokens, 8, state.buffers) for one in (kv_splits, reference.kv_splits)
    )
    yield "lengths of heads", difference(splits.seq_lens, plain.seq_lens), 0
    yield "KV splits", difference(splits.first_split, plain.first_split), 0
    chunks = chunks_of(state)
    made, plain_tables = (
        dense_tables(state.rows, chunks),
        reference.dense_tables(state.rows, chunks),
    )
    yield "block tables of prompts", difference(made.block_table, plain_tables.block_table), 0


def attention_checks(state: DeviceState) -> Iterator[Check]:
    tokens, splits = decode_step(state)
    query = state.queries(len(state.seq_lens))
    for layer in range(state.shape.num_layers):
        made, plain = torch.empty_like(query), torch.empty_like(query)
        for attend, output in ((attend_by_head, made), (reference.attend_by_head, plain)):
            attend(query, state.rows, tokens, splits, state.layer(layer), output)
        yield f"attention by head, layer {layer}", difference(made, plain), 0.02
    query = state.queries(sum(state.shape.prompt_tokens))
    made, plain = torch.empty_like(query), torch.empty_like(query)
    for attend_all, output in ((attend_chunks, made), (reference.attend_chunks, plain)):
        attend_all(query, state.rows, chunks_of(state), state.layer(0), output)
    yield "attention of prompts", difference(made, plain), 0.02


def compression_checks(state: DeviceState) -> Iterator[Check]:
    """Compare compression on this device with the CPU's, which the tests compare with references.

    Sums in another order may select another one of two positions with nearly equal scores.
    """
    query = state.queries(sum(state.shape.prompt_tokens))
    before, cpu = state.cache.clone(), torch.device("cpu")
    there = replace(state, cache=state.cache.cpu(), seq_lens=state.seq_lens.cpu())
    for policy in ("headkv", "adakv", "streaming"):
        for one, queries in ((state, query), (there, query.to(cpu))):
            prompts = [prompt_of(one, i, policy) for i in range(len(state.seq_lens))]
            compress(compressor_of(one), prompts, queries)
        is_other = (state.cache.cpu() != there.cache).flatten(2).any(2).double().mean().item()
        yield f"entries that are kept under {policy}, share of others", is_other, 0.01
        state.cache.copy_(before)
        there.cache.copy_(before)


def writing_checks(state: DeviceState, dtype: torch.dtype) -> Iterator[Check]:
    """dtype: of the cache. A GPU and torch round numbers in the same way."""
    num_reqs, shape = len(state.seq_lens), state.shape
    key, value = state.queries(num_reqs)[:, : 2 * shape.num_kv_heads].split(shape.num_kv_heads, 1)
    _, slots = step_tokens(*tokens_of(state), state.buffers)
    caches = []
    for write in (reshape_and_cache, reference.reshape_and_cache):
        inputs = replace(state.layer(0), head_blocks=torch.zeros_like(state.cache, dtype=dtype))
        write(key, value, slots, state.rows, inputs)
        caches.append(inputs.head_blocks.float())
    yield f"entries written as {str(dtype).removeprefix('torch.')}", difference(*caches), 0


def graph_check(state: DeviceState) -> Iterator[Check]:
    """A captured graph gives the same result as a normal step, also after requests have grown."""
    query = state.queries(len(state.seq_lens))
    output = torch.empty_like(query)

    def step() -> None:
        tokens, splits = decode_step(state)
        attend_by_head(query, state.rows, tokens, splits, state.layer(0), output)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    state.seq_lens.add_(1)
    graph.replay()
    replayed = output.clone()
    step()
    yield "a replayed CUDA graph", difference(replayed, output), 0
