# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for real GPUs, none of which need be there: `python -m ... cuda:90`.

Triton's interpreter runs kernels as Python, and lets pass much that its compiler refuses. So each
launch that the public functions make is compiled here, and not run. All tensors are fake ones,
without values: a function that read one on the host, and so waited for the device, would fail.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from headkv_vllm.config import Settings
from headkv_vllm.kernels.allotment import HeadWeights, Sizes, first_head_blocks
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.head_attention import attend_by_head
from headkv_vllm.kernels.kept_entries import copy_entries
from headkv_vllm.kernels.kept_positions import kept_positions
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.layer_split import split_layers
from headkv_vllm.kernels.position_scores import Wanted, position_scores
from headkv_vllm.kernels.prompt_tables import prompt_tables
from headkv_vllm.kernels.rows import DeviceRows
from headkv_vllm.kernels.step_tokens import step_tokens
from headkv_vllm.kernels.stored_entries import store_entries
from headkv_vllm.kernels.window_scores import window_scores
from headkv_vllm.kernels.work_list import work_list

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv"}
NAMES |= {torch.int32: "i32", torch.int64: "i64"}
WARP_SIZES = {"cuda": 32, "hip": 64}


def type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


@dataclass(frozen=True)
class Shape:
    """Of a model with 2 layers. group_size: query heads to each KV head."""

    cache_dtype: torch.dtype
    num_kv_heads: int = 2
    group_size: int = 4
    head_size: int = 128
    window: int = 8


SHAPES = (
    Shape(torch.bfloat16),
    Shape(torch.bfloat16, num_kv_heads=1, group_size=8, head_size=256, window=32),
    Shape(torch.float32, num_kv_heads=3, group_size=1, head_size=64),
    Shape(torch.float32),
)
FP8 = Shape(torch.float8_e4m3fn)
WITHOUT_FP8 = (80, 86)


def compiling(target: GPUTarget, done: Callable[[str, int], None]) -> Any:
    """What takes the place of a launch."""

    def launch(kernel: Any, *values: Any, grid: Any, warmup: bool, **sizes: Any) -> None:
        arguments = {**dict(zip(kernel.arg_names, values, strict=False)), **sizes}
        constants = {p.name for p in kernel.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constants else type_name(arguments[name])
            for name in kernel.arg_names
        }
        fixed = {name: arguments[name] for name in kernel.arg_names if name in constants}
        made = triton.compile(ASTSource(kernel, signature, fixed), target=target)
        done(kernel.__name__, made.metadata.shared)

    return launch


def launch_all(shape: Shape) -> None:
    num_kv_heads, window, num_heads = shape.num_kv_heads, shape.window, 2 * shape.num_kv_heads
    table = torch.zeros((2, 40), dtype=torch.int32)
    buffers = Buffers(table.device)
    weights = HeadWeights.of(np.ones((7, num_heads)), torch.device("cpu"))
    starts, ends = (torch.tensor(values, dtype=torch.int32) for values in ([0, 1, 2], [9, 9]))
    counts = torch.zeros((40, num_heads), dtype=torch.int32)
    decided = Decided(torch.ones(7, dtype=torch.int32), counts)
    step = (table, starts, ends)
    sizes = Sizes(num_kv_heads, window, 16, 1)
    first = first_head_blocks(*step, weights, decided, sizes, buffers)
    rows = DeviceRows(table, first, 2, num_kv_heads, 16, window)
    tokens, slots = step_tokens(*step, 2, 1, 16, buffers)
    content = (16, 2 * shape.head_size)
    entries, ones = torch.zeros((80 * num_heads, *content), dtype=shape.cache_dtype), torch.ones(1)
    inputs = LayerInputs(1, entries, 0.1, 0.0, ones, ones)
    queries = (2, num_kv_heads * shape.group_size, shape.head_size)
    query_dtype = torch.float32 if shape.cache_dtype == torch.float32 else torch.bfloat16
    query = torch.zeros(queries, dtype=query_dtype)
    work = work_list(rows, tokens, 8, buffers)
    chunks = Chunks(torch.tensor([0, 1], dtype=torch.int32), starts, ends, 300, 20)
    for soft_cap, reduction, pooling in ((0.0, "mean", "max"), (5.0, "max", "avg")):
        capped = replace(inputs, logits_soft_cap=soft_cap)
        attend_by_head(query, rows, tokens, work, capped, torch.empty_like(query))
        only_by_head = reduction == "max"
        attend_chunks(query, rows, chunks, capped, torch.empty_like(query), only_by_head)
        attention = window_scores(query, rows, chunks, capped, reduction)
        asked = Settings(budget=64, window=window, pooling=pooling, value_norm=pooling == "avg")
        wanted = Wanted(asked, torch.zeros(7, dtype=torch.int32))
        scores = position_scores(attention, rows, chunks, inputs, wanted)
    key, value = torch.zeros((2, 2, num_kv_heads, shape.head_size), dtype=query_dtype)
    store_entries(key, value, slots, rows, inputs)
    split_layers(scores, rows, chunks, 1, decided, 1)
    prompt_tables(rows, chunks)
    copy_entries(kept_positions(scores, rows, chunks, 1), rows, chunks, inputs)


def main() -> None:
    backend, _, name = sys.argv[1].partition(":")
    target = GPUTarget(backend, int(name) if name.isdigit() else name, WARP_SIZES[backend])
    compiled: dict[str, list[int]] = defaultdict(list)

    def done(kernel: str, shared_memory: int) -> None:
        compiled[kernel].append(shared_memory)

    JITFunction.run = compiling(target, done)
    shapes = SHAPES if target.arch in WITHOUT_FP8 else (*SHAPES, FP8)
    with FakeTensorMode():
        for shape in shapes:
            launch_all(shape)
    for kernel, shared_memory in sorted(compiled.items()):
        print(kernel, len(shared_memory), max(shared_memory))


if __name__ == "__main__":
    main()
