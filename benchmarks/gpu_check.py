# SPDX-License-Identifier: Apache-2.0
"""On a machine with a GPU: are the kernels right, and do they reach what the memory can give?

The kernels' part needs torch, Triton, NumPy and pydantic; the engine's part vLLM for that GPU.
Without a GPU the kernels are compared with their plain twins in Triton's interpreter, and nothing
is measured: cells stay empty.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

import triton.testing

from benchmarks.harness.device_checks import Check, checks, chunks_of, decode_step
from benchmarks.harness.device_state import SETTINGS, Shape, made_state
from benchmarks.harness.report import RESULTS, Bar, Report
from headkv_vllm.kernels.head_attention import attend_by_head
from headkv_vllm.kernels.kept_entries import copy_entries
from headkv_vllm.kernels.kept_positions import kept_positions
from headkv_vllm.kernels.position_scores import Wanted, position_scores
from headkv_vllm.kernels.window_scores import window_scores

DECODE: Final = Shape(4, 8, 4, 128, prompt_tokens=(2048,) * 64, kept=64, generated=100)
"""64 requests, 8 KV heads, 1,024 kept tokens on average, in four of a model's layers."""
PREFILL: Final = Shape(1, 8, 4, 128, prompt_tokens=(32_768,), kept=64)
COPY_BYTES: Final = 2**30


def milliseconds(run: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(run, warmup=100, rep=500, return_mode="median"))


def copy_bandwidth() -> float:
    """GB/s of a device copy, read and written bytes together."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / milliseconds(lambda: target.copy_(source)) / 1e6


def decode_measures() -> dict[str, float]:
    state = made_state(DECODE, torch.device("cuda"), torch.bfloat16)
    tokens, work = decode_step(state)
    query = state.queries(len(state.seq_lens))
    output = torch.empty_like(query)
    layers = [state.layer(index) for index in range(DECODE.num_layers)]

    def attend() -> None:
        for inputs in layers:
            attend_by_head(query, state.rows, tokens, work, inputs, output)

    num_bytes = int(work.seq_lens.sum()) * 2 * DECODE.head_size * 2
    # As in serving, where a graph launches it: from Python it would take longer than it runs.
    attention = float(triton.testing.do_bench_cudagraph(attend, rep=200, return_mode="median"))
    return {
        "device copy, GB/s": copy_bandwidth(),
        "attention by head, GB/s": num_bytes / attention / 1e6,
        "attention by head, ms per layer": attention / DECODE.num_layers,
        "metadata of a decode step, ms": milliseconds(lambda: decode_step(state)),
    }


def prefill_measures() -> dict[str, float]:
    state = made_state(PREFILL, torch.device("cuda"), torch.bfloat16)
    rows, chunks, inputs = state.rows, chunks_of(state), state.layer(0)
    query = state.queries(sum(PREFILL.prompt_tokens))
    wanted = Wanted(SETTINGS, torch.zeros(1, dtype=torch.int32, device="cuda"))

    def compress() -> None:
        attention = window_scores(query, rows, chunks, inputs, "mean")
        scores = position_scores(attention, rows, chunks, inputs, wanted)
        copy_entries(kept_positions(scores, rows, chunks, 0), rows, chunks, inputs)

    return {"compressing a prompt of 32,768 tokens, ms per layer": milliseconds(compress)}


def has_vllm_for_the_gpu() -> bool:
    """Whether this environment could serve a model on the GPU."""
    if not torch.cuda.is_available() or find_spec("vllm") is None:
        return False
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


UNMEASURED: Final = (
    Bar("engine step / short twin's", None, 1.05, at_most=True),
    Bar("TTFT at 32,768 tokens / stock's", None, 1.03, at_most=True),
)
"""Of the engine, where there is none."""
MEASURES: Final = (
    "device copy, GB/s",
    "attention by head, GB/s",
    "attention by head, ms per layer",
    "metadata of a decode step, ms",
    "compressing a prompt of 32,768 tokens, ms per layer",
)


def page(name: str, checked: list[Bar], measured: dict[str, float]) -> Report:
    """name: of the GPU. checked: all bars, some of them perhaps without a value yet."""
    rows = [{"measure": what, name: measured.get(what)} for what in MEASURES]
    notes = []
    if not has_vllm_for_the_gpu():
        notes.append("Rows of the engine stay empty: they need vLLM for a GPU.")
    if not measured:
        notes.append("No GPU was there: kernels ran in Triton's interpreter, nothing was measured.")
    slug = name.lower().replace(" ", "-") if measured else "none"
    question = f"Are the kernels right and fast? ({name})"
    return Report(f"gpu-{slug}", question, "scripts/gpu-check", rows, checked, notes)


def kernel_bars(made: list[Check], measured: dict[str, float]) -> list[Bar]:
    differ = [
        Bar(f"kernels and plain twins differ: {what}", d, most, True) for what, d, most in made
    ]
    share = None
    if measured:
        share = measured["attention by head, GB/s"] / measured["device copy, GB/s"]
    return [*differ, Bar("attention by head / device copy", share, 0.8, at_most=False)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/gpu-check")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the page (%(default)s)"
    )
    out = parser.parse_args().out
    has_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if has_gpu else "no GPU"
    made = checks(torch.device("cuda" if has_gpu else "cpu"))
    measured = {**decode_measures(), **prefill_measures()} if has_gpu else {}
    bars = [*kernel_bars(made, measured), *UNMEASURED]
    page(name, bars, measured).write(out)  # what there is, should the engine not start
    if has_vllm_for_the_gpu():
        from benchmarks import gpu_engine

        bars = [*kernel_bars(made, measured), *gpu_engine.bars()]
        page(name, bars, measured).write(out)
    for bar in bars:
        print(" | ".join(bar.cells))
    for what, value in measured.items():
        print(f"{what}: {value:.4g}")
    return 1 if any(bar.holds is False for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
