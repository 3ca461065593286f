# SPDX-License-Identifier: Apache-2.0
"""Whole engines on a GPU: decode steps, time to the first token, memory; beside stock vLLM.

A model of Qwen3-4B's shape with random weights. The engines take most of the GPU's memory, so they
live one after the other; the second one imports vLLM while the first one measures. The short twin
is the stock engine with prompts as long as what headkv keeps.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from benchmarks.harness import stepping
from benchmarks.harness.engine_process import EngineProcess
from benchmarks.harness.report import Bar
from benchmarks.harness.shapes import config_folder
from benchmarks.harness.sides import ENVIRONMENT, score_file

BLOCK_SIZE: Final = 16


@dataclass(frozen=True)
class Sizes:
    """num_requests prompts of prompt_tokens, of which each head keeps `budget` on average.

    ttft_tokens: of the `num_long` prompts whose first token is waited for, after one to warm up.
    """

    shape: str = "qwen3-4b"
    num_requests: int = 32
    prompt_tokens: int = 8192
    budget: int = 1024
    num_steps: int = 64
    ttft_tokens: int = 32_768
    num_long: int = 2
    max_num_batched_tokens: int = 8192

    @property
    def num_blocks(self) -> int:
        """Of a pool in which stock vLLM decodes all requests at once."""
        tokens = max(self.num_requests * (self.prompt_tokens + 256), self.ttft_tokens + 256)
        return tokens // BLOCK_SIZE + 64


GRAPHS: Final[dict[str, Any]] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""No torch.compile: it takes a minute, and the same from both engines."""


def arguments(sizes: Sizes, **more: Any) -> dict[str, Any]:
    """Of `vllm.LLM`, the same for both engines."""
    return {
        "model": str(config_folder(sizes.shape)),
        "load_format": "dummy",
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "block_size": BLOCK_SIZE,
        "max_model_len": max(sizes.ttft_tokens, sizes.prompt_tokens) + 512,
        "max_num_seqs": sizes.num_requests,
        "max_num_batched_tokens": sizes.max_num_batched_tokens,
        "num_gpu_blocks_override": sizes.num_blocks,
        "compilation_config": GRAPHS | {"cudagraph_capture_sizes": sorted({1, sizes.num_requests})},
        **more,
    }


def of_headkv(sizes: Sizes) -> dict[str, Any]:
    settings = {"scores": str(score_file(config_folder(sizes.shape))), "budget": sizes.budget}
    return {"attention_backend": "HEADKV", "additional_config": {"headkv": settings}}


@dataclass(frozen=True)
class Decode:
    """step: seconds of a step in which every request gets a token; used: part of the pool."""

    step: float
    used: float


def decode(llm: Any, sizes: Sizes, prompt_tokens: int, asked: dict[str, Any] | None) -> Decode:
    """Inside the engine: all prompts are read, then some steps are timed.

    With asynchronous scheduling a call returns what an earlier step computed, so the time is that
    of many calls together.
    """
    num_steps, warm_up = sizes.num_steps, 8
    # Requests start one after the other, and the first ones must still be there at the end.
    max_tokens = num_steps + 3 * warm_up + 2 * sizes.num_requests
    stepping.add_requests(llm, sizes.num_requests, prompt_tokens, max_tokens, 0, asked)
    stepping.prefill(llm)
    stepping.decode(llm, warm_up)
    started = perf_counter()
    stepping.decode(llm, num_steps)
    step = (perf_counter() - started) / num_steps
    used = stepping.core(llm).scheduler.kv_cache_manager.usage
    stepping.abort_all(llm)
    return Decode(step, used)


def first_token(llm: Any, sizes: Sizes, asked: dict[str, Any] | None) -> list[float]:
    """Inside the engine: seconds to the first token of one long prompt after the other."""
    times = []
    for index in range(sizes.num_long + 1):
        stepping.add_requests(llm, 1, sizes.ttft_tokens, 4, index, asked)
        started = perf_counter()
        stepping.prefill(llm)
        times.append(perf_counter() - started)
        stepping.abort_all(llm)
    return times[1:]


@dataclass(frozen=True)
class Measured:
    """By side: stock, twin, headkv, off (headkv with a budget of 0)."""

    decode: dict[str, Decode]
    ttft: dict[str, list[float]]

    def step_ratio(self, one: str, other: str) -> float:
        return self.decode[one].step / self.decode[other].step

    def ttft_ratio(self, one: str, other: str) -> float:
        return median(self.ttft[one]) / median(self.ttft[other])


Progress = Callable[[str, Any], None]
"""Is told each side's numbers as soon as they are there."""


def measure(sizes: Sizes, progress: Progress = lambda *_: None, **more: Any) -> Measured:
    """more: further arguments of `vllm.LLM`, for both engines."""
    common = arguments(sizes, **more)
    off = {"headkv_budget": 0}
    steps: dict[str, Decode] = {}
    ttft: dict[str, list[float]] = {}
    stock = EngineProcess(ENVIRONMENT, **common)
    headkv = EngineProcess(ENVIRONMENT, starts_at_once=False, **common | of_headkv(sizes))

    def time_steps(engine: EngineProcess, name: str, length: int, asked: Any = None) -> None:
        steps[name] = engine.call(decode, sizes, length, asked)
        progress(f"{name}: decode", asdict(steps[name]))

    def time_first_token(engine: EngineProcess, name: str, asked: Any = None) -> None:
        ttft[name] = engine.call(first_token, sizes, asked)
        progress(f"{name}: TTFT", ttft[name])

    try:
        time_steps(stock, "stock", sizes.prompt_tokens)
        time_steps(stock, "twin", sizes.budget)
        time_first_token(stock, "stock")
        stock.stop()
        time_steps(headkv, "headkv", sizes.prompt_tokens)
        time_first_token(headkv, "headkv")
        time_steps(headkv, "off", sizes.prompt_tokens, off)
        time_first_token(headkv, "off", off)
    finally:
        stock.stop()
        headkv.stop()
    return Measured(steps, ttft)


def from_json(found: Any) -> Measured:
    """What `main` has written."""
    steps = {name: Decode(**one) for name, one in found["decode"].items()}
    return Measured(steps, found["ttft"])


def bars(sizes: Sizes, found: Measured) -> list[Bar]:
    """What is promised of an engine on a GPU."""
    load = f"{sizes.num_requests} x {sizes.prompt_tokens:,}, budget {sizes.budget:,}"
    long = f"{sizes.ttft_tokens:,} tokens"
    return [
        Bar(f"step / short twin's, {load}", found.step_ratio("headkv", "twin"), 1.05, True),
        Bar(f"stock's step / headkv's, {load}", found.step_ratio("stock", "headkv"), 3, False),
        Bar(f"TTFT / stock's, {long}", found.ttft_ratio("headkv", "stock"), 1.03, True),
        Bar("budget 0: stock's step / headkv's", found.step_ratio("stock", "off"), 0.98, False),
        Bar(
            f"budget 0: stock's TTFT / headkv's, {long}",
            found.ttft_ratio("stock", "off"),
            0.98,
            False,
        ),
    ]


def rows(found: Measured) -> list[dict[str, Any]]:
    """A line for each side."""
    return [
        {
            "side": name,
            "step, ms": 1e3 * one.step,
            "part of the pool": one.used,
            "TTFT, ms": 1e3 * median(found.ttft[name]) if name in found.ttft else None,
        }
        for name, one in found.decode.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sync", action="store_true", help="without asynchronous scheduling")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    given = parser.parse_args()
    sizes = Sizes()
    more = {"async_scheduling": False} if given.sync else {}
    found = measure(sizes, lambda name, value: print(name, value, flush=True), **more)
    if given.out:
        given.out.write_text(json.dumps(asdict(found), indent=1) + "\n")
    for row in rows(found):
        print(row)
    for bar in bars(sizes, found):
        print(" | ".join(bar.cells))


if __name__ == "__main__":
    main()
