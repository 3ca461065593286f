# SPDX-License-Identifier: Apache-2.0
"""What this GPU's memory can give, and what our kernels and those of others take of it.

Shapes are those of Qwen3-4B: 36 layers, 32 query heads, 8 KV heads of 128, bfloat16. Times of a
decode step are those of a replayed CUDA graph over many layers, so that each layer's entries come
from memory and not from a cache. `main` prints one table per question and writes them as JSON.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
import triton.testing
from vllm._custom_ops import reshape_and_cache_flash
from vllm.v1.attention.ops.triton_unified_attention import unified_attention
from vllm.vllm_flash_attn import flash_attn_varlen_func

from benchmarks.harness.device_checks import compress, compressor_of, decode_step, prompt_of
from benchmarks.harness.device_state import BLOCK_SIZE, DeviceState, Shape, made_state
from headkv_vllm.cache.block_row import HEADER_SIZE
from headkv_vllm.kernels.cache_writes import reshape_and_cache
from headkv_vllm.kernels.decode_attention import attend_by_head

GPU: Final = torch.device("cuda")
HEADS: Final = {"num_kv_heads": 8, "group_size": 4, "head_size": 128}
GIB: Final = 2**30
GENERATED: Final = 8
L2_BYTES: Final = 64 * 2**20
"""More than the last cache of an H100 or H200 holds."""

Row = dict[str, Any]


def eager_ms(run: Callable[[], object]) -> float:
    """Launched from Python, as prompts are."""
    return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))


def graph_ms(run: Callable[[], object]) -> float:
    """Launched by a graph, as decode steps are."""
    return float(triton.testing.do_bench_cudagraph(run, rep=50, return_mode="median"))


def ceilings() -> Iterator[Row]:
    """GB/s of a device copy, reads and writes together, and of a sum, which only reads."""
    source = torch.empty(4 * GIB, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)
    copied = 2 * len(source) / eager_ms(lambda: target.copy_(source)) / 1e6
    numbers = source.view(torch.float32).normal_()
    summed = len(source) / eager_ms(lambda: numbers.sum()) / 1e6
    yield {"ceiling": "copy of 4 GiB, read and written", "GB/s": copied}
    yield {"ceiling": "sum of 4 GiB, read", "GB/s": summed}


def decode_cases() -> Iterator[Row]:
    """Attention of one decode step at the same number of kept entries."""
    for batch in (1, 8, 64, 256):
        for kept in (512, 1024, 4096) if batch < 256 else (512, 1024):
            yield decode_case(batch, kept)


def decode_case(batch: int, kept: int) -> Row:
    """One batch size and number of kept entries, in ms per layer."""
    layer_bytes = batch * kept * HEADS["num_kv_heads"] * HEADS["head_size"] * 4
    num_layers = 36 if layer_bytes < L2_BYTES else 4
    shape = Shape(
        num_layers, **HEADS, prompt_tokens=(2 * kept,) * batch, kept=kept // BLOCK_SIZE,
        generated=GENERATED,
    )  # fmt: skip
    row: Row = {"requests": batch, "kept": kept}
    for name, is_even in (("even heads", True), ("uneven heads", False)):
        state = made_state(shape, GPU, torch.bfloat16, is_even)
        entries, milliseconds = by_head(state)
        row[f"{name}, ms"] = milliseconds
        row[f"{name}, GB/s"] = entries * HEADS["head_size"] * 4 / milliseconds / 1e6
    length = entries // (batch * HEADS["num_kv_heads"])
    row["FlashAttention 3, ms"], row["vLLM's Triton kernel, ms"] = by_others(state, length)
    return row


def by_head(state: DeviceState) -> tuple[int, float]:
    """How many entries a layer attends on average, and the time that takes."""
    num_layers = state.shape.num_layers
    tokens, splits = decode_step(state)
    query = state.queries(len(state.seq_lens))
    output = torch.empty_like(query)
    layers = [state.layer(index) for index in range(num_layers)]

    def attend() -> None:
        for inputs in layers:
            attend_by_head(query, state.rows, tokens, splits, inputs, output)

    return int(splits.seq_lens.sum()) // num_layers, graph_ms(attend) / num_layers


def by_others(state: DeviceState, length: int) -> tuple[float, float]:
    """Kernels for whole blocks, over as many entries of the same cache."""
    shape, batch = state.shape, len(state.seq_lens)
    per_block = shape.num_layers * shape.num_kv_heads
    blocks = state.cache.unflatten(0, (-1, shape.num_layers, shape.num_kv_heads))
    num_blocks = -(-length // BLOCK_SIZE)
    order = torch.randperm(len(state.cache) // per_block, device=GPU, dtype=torch.int32)
    table = order[: batch * num_blocks].view(batch, num_blocks)
    query = state.queries(batch)
    output = torch.empty_like(query)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=GPU)
    caches = [blocks[:, layer].transpose(1, 2).chunk(2, -1) for layer in range(shape.num_layers)]
    scale = shape.head_size**-0.5

    def flash() -> None:
        for keys, values in caches:
            flash_attn_varlen_func(
                query, keys, values, 1, state.query_start_loc, length,
                seqused_k=lengths, softmax_scale=scale, causal=True, block_table=table, out=output,
                fa_version=3,
            )  # fmt: skip

    segments = triton_segments(shape, batch)
    one = torch.ones((batch, shape.num_kv_heads), device=GPU)

    def unified() -> None:
        for keys, values in caches:
            unified_attention(
                query, keys, values, output, state.query_start_loc, 1, lengths, length, scale,
                True, (-1, -1), table, 0.0, None, one, one, **segments,
            )  # fmt: skip

    return tuple(graph_ms(run) / shape.num_layers for run in (flash, unified))


def triton_segments(shape: Shape, batch: int) -> dict[str, Any]:
    """What vLLM's Triton backend reserves to split the entries of small batches."""
    threshold, num_segments = 128 // shape.num_kv_heads, 16
    most, heads = max(threshold, batch), shape.num_heads
    partial = torch.empty((most, heads, num_segments, shape.head_size), device=GPU)
    sums = [torch.empty((most, heads, num_segments), device=GPU) for _ in range(2)]
    return {
        "seq_threshold_3D": threshold,
        "num_par_softmax_segments": num_segments,
        "softmax_segm_output": partial,
        "softmax_segm_max": sums[0],
        "softmax_segm_expsum": sums[1],
    }


def metadata_cases() -> Iterator[Row]:
    """All that is planned for a decode step, once for all layers."""
    for batch in (8, 64, 256):
        yield metadata_case(batch)


def metadata_case(batch: int) -> Row:
    shape = Shape(36, **HEADS, prompt_tokens=(512,) * batch, kept=8, generated=GENERATED)
    state = made_state(shape, GPU, torch.bfloat16)
    return {
        "requests": batch,
        "from Python, ms": eager_ms(lambda: decode_step(state)),
        "on the GPU, ms": graph_ms(lambda: decode_step(state)),
    }


def compression_cases() -> Iterator[Row]:
    """All layers of one prompt, beside the attention that reads that prompt."""
    for length in (1024, 8192, 32_768, 131_072):
        yield compression_case(length)


def compression_case(length: int) -> Row:
    """A prompt of `length` tokens becomes 1,024 kept ones, or half of it where that is less."""
    num_layers = 36 if length <= 32_768 else 12
    kept = min(1024, length // 2) // BLOCK_SIZE
    state = made_state(
        Shape(num_layers, **HEADS, prompt_tokens=(length,), kept=kept), GPU, torch.bfloat16
    )
    query, compressor = state.queries(length), compressor_of(state)
    prompts = [prompt_of(state, 0)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    milliseconds = eager_ms(lambda: compress(compressor, prompts, query)) / num_layers
    workspace = torch.cuda.max_memory_allocated() - before
    keys, values = (torch.randn_like(query[:, : HEADS["num_kv_heads"]]) for _ in range(2))
    starts = torch.tensor([0, length], dtype=torch.int32, device=GPU)

    def attend() -> None:
        flash_attn_varlen_func(
            query, keys, values, length, starts, length, starts, causal=True, fa_version=3
        )

    prefill = eager_ms(attend)
    return {
        "prompt tokens": length,
        "compression, ms per layer": milliseconds,
        "prefill attention, ms per layer": prefill,
        "compression / prefill attention": milliseconds / prefill,
        "workspace, MiB": workspace / 2**20,
    }


def writing_cases() -> Iterator[Row]:
    """Entries written into the cache, beside vLLM's own kernel for blocks of tokens."""
    shape = Shape(36, **HEADS, prompt_tokens=(8192,), kept=8)
    state = made_state(shape, GPU, torch.bfloat16)
    for num_tokens in (64, 8192):
        yield writing_case(state, num_tokens)


def writing_case(state: DeviceState, num_tokens: int) -> Row:
    """The first `num_tokens` tokens of the state's only prompt, in one layer."""
    shape = state.shape
    blocks = state.cache.unflatten(0, (-1, shape.num_layers, shape.num_kv_heads))[:, 0]
    caches = blocks.transpose(1, 2).chunk(2, -1)
    first = state.rows.rows[0, HEADER_SIZE + shape.kept :].long() * BLOCK_SIZE
    slots = (first[:, None] + torch.arange(BLOCK_SIZE, device=GPU)).flatten()[:num_tokens]
    key, value = (state.queries(num_tokens)[:, : shape.num_kv_heads] for _ in range(2))
    one, inputs = torch.ones(1, device=GPU), state.layer(0)
    return {
        "tokens": num_tokens,
        "ours, ms": graph_ms(lambda: reshape_and_cache(key, value, slots, state.rows, inputs)),
        "reshape_and_cache_flash, ms": graph_ms(
            lambda: reshape_and_cache_flash(key, value, *caches, slots, "auto", one, one)
        ),
    }


QUESTIONS: Final[dict[str, Callable[[], Iterator[Row]]]] = {
    "ceilings": ceilings,
    "decode attention": decode_cases,
    "metadata of a decode step": metadata_cases,
    "compression": compression_cases,
    "cache writes": writing_cases,
}


def measure(only: str = "") -> dict[str, list[Row]]:
    """All questions whose name has `only`; a question that fails is told and left out."""
    found: dict[str, list[Row]] = {}
    for name, ask in QUESTIONS.items():
        rows: list[Row] = []
        try:
            for row in ask() if only in name else ():
                rows.append(row)
                print(f"{name}: {shown(row)}", flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        found[name] = rows
        torch.cuda.empty_cache()
    return found


def shown(row: Row) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a question's name")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    arguments = parser.parse_args()
    found = measure(arguments.only)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
