# SPDX-License-Identifier: Apache-2.0
"""How costs grow: decode steps with the batch, compression with the prompt, planning with heads."""

from statistics import median
from typing import Any

import torch
import typer
from rich.progress import track

from benchmarks.harness import parts_of_step, stepping
from benchmarks.harness.components import Compressing, Planning
from benchmarks.harness.pictures import lines
from benchmarks.harness.report import RESULTS, Bar, Out, Quick, Report, command_line
from benchmarks.harness.sides import BLOCK_SIZE, SideName, sides

NAMES: tuple[SideName, ...] = ("headkv", "twin", "stock")
NUM_STEPS = 20
Rows = list[dict[str, Any]]


def batches(sizes: list[int], num_prompt_tokens: int = 1024, budget: int = 128) -> Rows:
    """Decode steps of each side by the number of requests."""
    per_request = (num_prompt_tokens + 256) // BLOCK_SIZE + 2
    num_blocks = (max(sizes) + 2) * per_request
    limits = (num_prompt_tokens + 256, max(sizes))
    rows = []
    with sides(NAMES, "8-layer", *limits, num_gpu_blocks_override=num_blocks) as engines:
        for size in track(sizes, "requests"):
            for name, side in engines.items():
                length = budget if name == "twin" else num_prompt_tokens
                side(stepping.add_requests, size, length, 256, size, {"headkv_budget": budget})
                side(stepping.prefill)
            turns = [
                {
                    name: median(side(stepping.decode, NUM_STEPS)[3:])
                    for name, side in engines.items()
                }
                for _ in range(3)
            ]
            found = {f"{name}, ms": 1e3 * median(t[name] for t in turns) for name in NAMES}
            rows.append({"requests": size, **found})
            for side in engines.values():
                side(stepping.abort_all)
    return rows


def prompts(lengths: list[int], budget: int = 512) -> Rows:
    """Compressing one layer of a prompt, by its length: 4 KV heads of 64, 2 query heads each."""
    return [
        {"prompt": length, "one layer, ms": 1e3 * Compressing(4, 2, 64, length, budget).seconds()}
        for length in track(lengths, "prompts")
    ]


def heads(num_layers: list[int], num_requests: int = 32, budget: int = 1024) -> Rows:
    """Planning a step of requests that each are somewhere else in their block."""
    return [
        {
            "layers x KV heads": f"{layers} x 8",
            "planning, ms": 1e3
            * Planning(layers, 8, num_requests, 2048, budget).seconds_per_step(),
        }
        for layers in track(num_layers, "layers")
    ]


def share_of_metadata(num_requests: int, num_prompt_tokens: int, budget: int) -> dict[str, Any]:
    """Building a step's metadata, work schedules included, beside the step, of 32 layers."""
    num_blocks = num_requests * (budget // BLOCK_SIZE + 8) + num_prompt_tokens // BLOCK_SIZE + 128
    limits = (num_prompt_tokens + 256, num_requests)
    with sides(("headkv",), "32-layer", *limits, num_gpu_blocks_override=num_blocks) as engines:
        side = engines["headkv"]
        asked = {"headkv_budget": budget}
        side(stepping.add_requests, num_requests, num_prompt_tokens, 250, 0, asked)
        side(stepping.prefill)
        side(parts_of_step.watch, "metadata")
        steps = side(stepping.decode, 3 * BLOCK_SIZE)
        seconds = side(parts_of_step.seconds)["metadata"]
    return {
        "requests": num_requests,
        "step, ms": 1e3 * median(steps),
        "metadata, ms": 1e3 * seconds / len(steps),
        "share, %": 100 * seconds / sum(steps),
    }


def main(quick: Quick = False, out: Out = RESULTS) -> None:
    """Measure how the costs of headkv grow with requests, prompt lengths, layers and heads."""
    torch.set_num_threads(1)
    by_prompt = prompts([1024] if quick else [1024 * 2**n for n in range(7)])
    by_layers = heads([2] if quick else [8, 16, 32, 64])
    by_batch = batches([1, 2] if quick else [1, 2, 4, 8, 16, 32, 64])
    share = share_of_metadata(*((2, 512, 128) if quick else (32, 1280, 1024)))
    sizes = [row["requests"] for row in by_batch]
    steps = {name: (sizes, [row[f"{name}, ms"] for row in by_batch]) for name in NAMES}
    lines(
        out / "scaling-batch.png", steps, ("requests of 1,024 tokens", "ms per decode step"), True
    )
    lengths, seconds = zip(*(row.values() for row in by_prompt), strict=True)
    labels = ("prompt tokens", "ms to compress a layer")
    lines(out / "scaling-prompt.png", {"headkv, budget 512": (lengths, seconds)}, labels, True)
    shape = "32 layers x 8 KV heads, 32 requests, budget 1,024"
    bar = Bar(f"Metadata's share of a step, %, {shape}", share["share, %"], 3.0, at_most=True)
    command, batch, prompt = command_line("scaling"), "scaling-batch.png", "scaling-prompt.png"
    growth = "How does {} grow with {}?"
    for report in (
        Report(
            "scaling_batch",
            growth.format("a decode step", "the batch"),
            command,
            by_batch,
            [],
            pictures=[batch],
        ),
        Report(
            "scaling_prompt",
            growth.format("compressing a layer", "the prompt"),
            command,
            by_prompt,
            [],
            pictures=[prompt],
        ),
        Report(
            "scaling_heads",
            growth.format("planning a step", "layers and heads"),
            command,
            by_layers,
            [],
        ),
        Report("metadata", "How much of a step is metadata?", command, [share], [bar]),
    ):
        report.write(out)


if __name__ == "__main__":
    typer.run(main)
