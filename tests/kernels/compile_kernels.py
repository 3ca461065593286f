# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for real GPUs, none of which need be there: `python -m ... cuda:90`.

Triton's interpreter runs kernels as Python, and lets pass much that its compiler refuses. So each
launch that the public functions make is compiled here, and not run. All tensors are fake ones,
without values: a function that read one on the host, and so waited for the device, would fail.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from headkv_vllm.config import Settings
from headkv_vllm.kernels.allotment import HeadWeights, first_head_blocks
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.head_attention import attend_by_head
from headkv_vllm.kernels.kept_entries import copy_entries
from headkv_vllm.kernels.kept_positions import kept_positions
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.position_scores import Wanted, position_scores
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


def compiling(target: GPUTarget, done: Callable[[str], None]) -> Any:
    """What takes the place of a launch."""

    def launch(kernel: Any, *values: Any, grid: Any, warmup: bool, **sizes: Any) -> None:
        arguments = {**dict(zip(kernel.arg_names, values, strict=False)), **sizes}
        constants = {p.name for p in kernel.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constants else type_name(arguments[name])
            for name in kernel.arg_names
        }
        fixed = {name: arguments[name] for name in kernel.arg_names if name in constants}
        triton.compile(ASTSource(kernel, signature, fixed), target=target)
        done(kernel.__name__)

    return launch


def launch_all(cache_dtype: torch.dtype) -> None:
    """Of a model with 2 layers, 2 KV heads and 4 query heads to each."""
    table = torch.zeros((2, 40), dtype=torch.int32)
    buffers = Buffers(table.device)
    weights = HeadWeights.of(np.ones((7, 4)), torch.device("cpu"))
    first = first_head_blocks(table, weights, 8, 16, 1, buffers)
    rows = DeviceRows(table, first, 2, 2, 16, 8)
    starts, ends = (torch.tensor(values, dtype=torch.int32) for values in ([0, 1, 2], [9, 9]))
    tokens, slots = step_tokens(table, starts, ends, 2, 1, 16, buffers)
    entries, ones = torch.zeros((160, 16, 256), dtype=cache_dtype), torch.ones(1)
    inputs = LayerInputs(1, entries, 0.1, 0.0, ones, ones)
    query = torch.zeros((2, 8, 128), dtype=torch.bfloat16)
    work = work_list(rows, tokens, 8, buffers)
    chunks = Chunks(torch.tensor([0, 1], dtype=torch.int32), starts, ends, 300, 20)
    for soft_cap, reduction, pooling in ((0.0, "mean", "max"), (5.0, "max", "avg")):
        capped = replace(inputs, logits_soft_cap=soft_cap)
        attend_by_head(query, rows, tokens, work, capped, torch.empty_like(query))
        attend_chunks(query, rows, chunks, capped, torch.empty_like(query))
        attention = window_scores(query, rows, chunks, capped, reduction)
        asked = Settings(budget=64, pooling=pooling, value_norm=pooling == "avg")
        wanted = Wanted(asked, torch.zeros(7, dtype=torch.int32))
        scores = position_scores(attention, rows, chunks, inputs, wanted)
    store_entries(query[:, :2], query[:, 2:4], slots, rows, inputs)
    copy_entries(kept_positions(scores, rows, chunks, 1), rows, chunks, inputs)


def main() -> None:
    backend, _, name = sys.argv[1].partition(":")
    target = GPUTarget(backend, int(name) if name.isdigit() else name, WARP_SIZES[backend])
    compiled: dict[str, int] = {}

    def done(kernel: str) -> None:
        compiled[kernel] = compiled.get(kernel, 0) + 1

    JITFunction.run = compiling(target, done)
    with FakeTensorMode():
        launch_all(torch.bfloat16)
        if target.arch != 80:  # which has no such numbers
            launch_all(torch.float8_e4m3fn)
    for kernel, times in sorted(compiled.items()):
        print(kernel, times)


if __name__ == "__main__":
    main()
