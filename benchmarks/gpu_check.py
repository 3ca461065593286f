# SPDX-License-Identifier: Apache-2.0
"""On a machine with a GPU: are the kernels right, and do they reach what the memory can give?

The kernels' part needs torch, Triton, NumPy and pydantic; the engine's part vLLM for that GPU.
Without a GPU the kernels are compared with their plain twins in Triton's interpreter, and nothing
is measured: cells stay empty.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

import triton.testing

from benchmarks.harness.device_state import (
    BLOCK_SIZE,
    SETTINGS,
    DeviceState,
    Shape,
    made_state,
)
from benchmarks.harness.report import RESULTS, Bar, Report
from headkv_vllm.kernels.allotment import first_head_blocks, first_head_blocks_plain
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunk_attention import attend_chunks, attend_chunks_plain
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.head_attention import attend_by_head, attend_by_head_plain
from headkv_vllm.kernels.kept_entries import copy_entries, copy_entries_plain
from headkv_vllm.kernels.kept_positions import kept_positions, kept_positions_plain
from headkv_vllm.kernels.position_scores import Wanted, position_scores, position_scores_plain
from headkv_vllm.kernels.rows import DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens, step_tokens_plain
from headkv_vllm.kernels.window_scores import window_scores, window_scores_plain
from headkv_vllm.kernels.work_list import (
    WorkList,
    num_programs_of,
    work_list,
    work_list_plain,
)

SMALL: Final = Shape(2, 2, 3, 64, prompt_tokens=(300, 410), kept=4, generated=7)
DECODE: Final = Shape(4, 8, 4, 128, prompt_tokens=(2048,) * 64, kept=64, generated=100)
"""64 requests, 8 KV heads, 1,024 kept tokens on average, in four of a model's layers."""
PREFILL: Final = Shape(1, 8, 4, 128, prompt_tokens=(32_768,), kept=64)
COPY_BYTES: Final = 2**30

Check = tuple[str, float, float]
"""What was compared, the largest difference, and the largest that may be."""


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
    positions = kept_positions(scores, rows, chunks, 0)
    kept = kept_positions_plain(scores, rows, chunks, 0)
    yield "positions kept", difference(positions, kept), 0
    before = state.cache.clone()
    copy_entries(positions, rows, chunks, inputs)
    made = state.cache.clone()
    state.cache.copy_(before)
    copy_entries_plain(positions, rows, chunks, inputs)
    yield "entries copied", difference(made, state.cache), 0


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


def checks(device: torch.device) -> list[Check]:
    state = made_state(SMALL, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    found = [*metadata_checks(state), *attention_check(state), *compaction_checks(state)]
    return [*found, *graph_check(state)] if device.type == "cuda" else found


def has_vllm_for_the_gpu() -> bool:
    """Whether this environment could serve a model on the GPU."""
    if not torch.cuda.is_available() or find_spec("vllm") is None:
        return False
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


def engine_bars() -> list[Bar]:
    """Rows of the engine, with empty cells where there is none."""
    if has_vllm_for_the_gpu():
        from benchmarks import gpu_engine

        return gpu_engine.bars()
    return [
        Bar("engine step / short twin's", None, 1.05, at_most=True),
        Bar("TTFT at 32,768 tokens / stock's", None, 1.03, at_most=True),
    ]


MEASURES: Final = (
    "device copy, GB/s",
    "attention by head, GB/s",
    "attention by head, ms per layer",
    "metadata of a decode step, ms",
    "compressing a prompt of 32,768 tokens, ms per layer",
)


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
    share = measured.get("attention by head, GB/s", 0) / measured.get("device copy, GB/s", 1)
    bars = [
        *(Bar(f"kernels and plain twins differ: {what}", d, most, True) for what, d, most in made),
        Bar("attention by head / device copy", share if has_gpu else None, 0.8, at_most=False),
        *engine_bars(),
    ]
    rows = [{"measure": what, name: measured.get(what)} for what in MEASURES]
    notes = []
    if not has_vllm_for_the_gpu():
        notes.append("Rows of the engine stay empty: they need vLLM for a GPU.")
    if not has_gpu:
        notes.append("No GPU was there: kernels ran in Triton's interpreter, nothing was measured.")
    slug = name.lower().replace(" ", "-") if has_gpu else "none"
    question = f"Are the kernels right and fast? ({name})"
    Report(f"gpu-{slug}", question, "scripts/gpu-check", rows, bars, notes).write(out)
    for bar in bars:
        print(" | ".join(bar.cells))
    for what, value in measured.items():
        print(f"{what}: {value:.4g}")
    return 1 if any(bar.holds is False for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
