# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for real GPUs, without one: `python -m ... cuda:90`.

Triton's interpreter runs kernels as Python and accepts much that its compiler refuses. So each
launch that the public functions make is compiled here, and not run. All tensors are fake ones,
without values: a function that reads one on the host, and so waits for the device, fails.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from headkv_vllm.kernels.cache_writes import reshape_and_cache
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.decode_attention import attend_by_head
from headkv_vllm.kernels.dense_tables import dense_tables
from headkv_vllm.kernels.inputs import Buffers, Chunks, DeviceRows, LayerInputs
from headkv_vllm.kernels.kv_splits import kv_splits
from headkv_vllm.kernels.step_tokens import step_tokens

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv"}
NAMES |= {torch.int32: "i32", torch.int64: "i64"}
WARP_SIZES = {"cuda": 32, "hip": 64}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


@dataclass(frozen=True)
class Shape:
    """Of a model with 2 layers, and of a step. group_size: query heads to each KV head."""

    cache_dtype: torch.dtype
    num_reqs: int = 2
    num_kv_heads: int = 2
    group_size: int = 4
    head_size: int = 128
    window: int = 8


SHAPES = (
    Shape(torch.bfloat16),
    Shape(torch.bfloat16, num_reqs=1024, num_kv_heads=8, head_size=64),
    Shape(torch.bfloat16, num_kv_heads=1, group_size=8, head_size=256, window=32),
    Shape(torch.float32, num_kv_heads=3, group_size=1, head_size=64),
    Shape(torch.float32),
)
FP8 = Shape(torch.float8_e4m3fn)
WITHOUT_FP8 = (80, 86)


OPTIONS = ("num_warps", "num_stages")


def compiling(target: GPUTarget, done: Callable[[str, Any], None]) -> Any:
    """What takes the place of a launch."""

    def launch(kernel: Any, *values: Any, grid: Any, warmup: bool, **sizes: Any) -> None:
        options = {name: sizes.pop(name) for name in OPTIONS if name in sizes}
        arguments = {**dict(zip(kernel.arg_names, values, strict=False)), **sizes}
        constants = {p.name for p in kernel.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constants else type_name(arguments[name])
            for name in kernel.arg_names
        }
        fixed = {name: arguments[name] for name in kernel.arg_names if name in constants}
        source = ASTSource(kernel, signature, fixed)
        done(kernel.__name__, triton.compile(source, target=target, options=options))

    return launch


def spilled_bytes(compiled: Any) -> int:
    """Of each thread, as the machine code says: NVIDIA's cubin, or AMD's assembly."""
    if "amdgcn" in compiled.asm:
        found = re.findall(r"\.private_segment_fixed_size:\s*(\d+)", compiled.asm["amdgcn"])
        return max(map(int, found))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(map(int, re.findall(r"STACK:(\d+)", text)))


def launch_all(shape: Shape) -> None:
    num_kv_heads, num_heads = shape.num_kv_heads, 2 * shape.num_kv_heads
    num_reqs, on_device = shape.num_reqs, {"dtype": torch.int32}
    table = torch.zeros((num_reqs, 40), **on_device)
    buffers = Buffers(table.device)
    starts, ends = torch.zeros(num_reqs + 1, **on_device), torch.zeros(num_reqs, **on_device)
    allocations = torch.zeros((40, num_heads + 1), **on_device)
    rows = DeviceRows(table, allocations, 2, num_kv_heads, 16, shape.window)
    stock_slots = torch.zeros(num_reqs, dtype=torch.int64)
    tokens, slots = step_tokens(table, starts, ends, stock_slots, 1, 16, buffers)
    content = (16, 2 * shape.head_size)
    entries, ones = torch.zeros((80 * num_heads, *content), dtype=shape.cache_dtype), torch.ones(1)
    inputs = LayerInputs(1, entries, 0.1, 0.0, ones, ones)
    queries = (num_reqs, num_kv_heads * shape.group_size, shape.head_size)
    query_dtype = torch.float32 if shape.cache_dtype == torch.float32 else torch.bfloat16
    query = torch.zeros(queries, dtype=query_dtype)
    splits = kv_splits(rows, tokens, 8, buffers)
    chunks = Chunks(torch.tensor([0, 1], **on_device), starts, ends, 300, 20)
    for soft_cap, only_by_head in ((0.0, False), (5.0, True)):
        capped = replace(inputs, logits_soft_cap=soft_cap)
        attend_by_head(query, rows, tokens, splits, capped, torch.empty_like(query))
        attend_chunks(query, rows, chunks, capped, torch.empty_like(query), only_by_head)
    key, value = torch.zeros((2, num_reqs, num_kv_heads, shape.head_size), dtype=query_dtype)
    reshape_and_cache(key, value, slots, rows, inputs)
    dense_tables(rows, chunks)


def main() -> None:
    """Prints each kernel: how many variants, shared memory and spilled bytes, at most."""
    backend, _, name = sys.argv[1].partition(":")
    target = GPUTarget(backend, int(name) if name.isdigit() else name, WARP_SIZES[backend])
    compiled: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def done(kernel: str, made: Any) -> None:
        compiled[kernel].append((made.metadata.shared, spilled_bytes(made)))

    JITFunction.run = compiling(target, done)
    shapes = SHAPES if target.arch in WITHOUT_FP8 else (*SHAPES, FP8)
    with FakeTensorMode():
        for shape in shapes:
            launch_all(shape)
    for kernel, variants in sorted(compiled.items()):
        print(kernel, len(variants), *map(max, zip(*variants, strict=True)))


if __name__ == "__main__":
    main()
