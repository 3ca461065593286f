# SPDX-License-Identifier: Apache-2.0
"""A real server under mixed traffic for a long time: is any answer wrong, is anything left behind?

Requests of all lengths, budgets and policies, streamed or not, with stop strings, log-probabilities
and structured output, of clients that leave early, share prefixes and sample twice, in a pool too
small for all, so that requests are preempted. Each greedy answer must be the one that the same
request got alone. The server goes through its own books in each step (`check_integrity`).
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import httpx
import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from benchmarks.harness.pictures import lines
from benchmarks.harness.report import RESULTS, Bar, Out, Quick, Report, command_line
from benchmarks.harness.sides import ENVIRONMENT
from benchmarks.harness.traffic import Tally, TrafficClient, answers_alone, draw_questions, soak
from headkv_vllm.engine.metrics.definitions import ALLOCATION_CACHE_SIZE, METRICS
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.server.process import ServerProcess

MODEL: Final = "needle"
NUM_BLOCKS: Final = 226
"""Of 16 tokens: hardly more than the longest request, so that requests are preempted."""
START_TIMEOUT: Final = 240.0
NUM_CLIENTS: Final = 16
AT_REST: Final = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    *(
        name
        for name, m in METRICS.items()
        if m.kind == "gauge" and name != "headkv:allocation_cache_size"
    ),
)
"""Metrics that must be 0 when there are no requests."""


@dataclass
class Memory:
    """Resident memory of the server's processes, in MiB, by seconds."""

    seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """The median of the last quarter over that of the second one, less 1."""
        quarter = max(1, len(self.mebibytes) // 4)
        early, late = self.mebibytes[quarter : 2 * quarter], self.mebibytes[-quarter:]
        return median(late) / median(early or late) - 1


def serve_arguments(compress_prefill: bool) -> list[str]:
    """Of `vllm serve`."""
    headkv: dict[str, Any] = {"budget": 128, "check_integrity": True}
    if compress_prefill:
        headkv |= {"compress_every": 64, "compress_prefill": True}
    settings = {"headkv": headkv}
    return [
        *(str(checkpoint_path()), "--served-model-name", MODEL, "--attention-backend", "headkv"),
        *("--additional-config", json.dumps(settings), "--dtype", "float32", "--enforce-eager"),
        *("--block-size", "16", "--num-gpu-blocks-override", str(NUM_BLOCKS)),
        *("--max-model-len", "3328", "--max-num-seqs", "16", "--max-num-batched-tokens", "1024"),
        # Nothing looks ahead when requests are admitted, so that some are preempted.
        *("--no-scheduler-reserve-full-isl", "--disable-uvicorn-access-log"),
    ]


def metrics(url: str) -> dict[str, float]:
    """Sums by name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@contextmanager
def watching(process_id: int) -> Iterator[Memory]:
    """Measure memory once a second inside the block."""
    memory, start, ended = Memory(), time.monotonic(), threading.Event()

    def measure() -> None:
        while not ended.wait(1):
            memory.seconds.append(time.monotonic() - start)
            memory.mebibytes.append(resident_memory(process_id) / 2**20)

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def resident_memory(process_id: int) -> int:
    """Bytes of a process and all that it has started."""
    process = psutil.Process(process_id)
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def left_behind(url: str, seconds: float = 60) -> dict[str, float]:
    """The metrics that do not return to 0 after the last request."""
    deadline = time.monotonic() + seconds
    while True:
        now = metrics(url)
        left = {
            name: now[name] for name in AT_REST if now[name] and name != ALLOCATION_CACHE_SIZE.name
        }
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


async def run(url: str, seconds: float, num_requests: int, num_questions: int, seed: int) -> Tally:
    """Ask everything alone, and then all at once until time or `num_requests` is over."""
    console = Console(stderr=True)
    client = TrafficClient(url, MODEL)
    questions = draw_questions(num_questions, seed)
    with console.status(f"{num_questions} questions, one by one"):
        expected = await answers_alone(client, questions)
    deadline = time.monotonic() + seconds
    with console.status("all at once") as status:

        def is_over(tally: Tally) -> bool:
            left = max(0.0, deadline - time.monotonic())
            status.update(
                f"{tally.num_requests:,} requests, {len(tally.wrong)} wrong, "
                f"{len(tally.failed)} failed, {tally.hung} hung, {left:.0f} s left"
            )
            return left == 0 or tally.num_requests >= num_requests

        tally = await soak(client, questions, expected, NUM_CLIENTS, is_over, seed)
    await client.close()
    return tally


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long at most.")] = 1800,
    requests: Annotated[int, typer.Option(min=1, help="How many requests at most.")] = 10**9,
    questions: Annotated[int, typer.Option(min=1, help="Different requests.")] = 150,
    seed: Annotated[int, typer.Option(help="Of the questions and their order.")] = 0,
    compress_prefill: Annotated[
        bool, typer.Option("--compress-prefill", help="Compress prompts while they are read.")
    ] = False,
    quick: Quick = False,
    out: Out = RESULTS,
) -> None:
    """Serve mixed traffic and check every answer. Exits with 1 if anything was wrong or is left."""
    if quick:
        seconds, questions = min(seconds, 60), min(questions, 40)
    out.mkdir(parents=True, exist_ok=True)
    name = "soak_prefill" if compress_prefill else "soak"
    arguments = serve_arguments(compress_prefill)
    with ServerProcess(arguments, out / f"{name}.log", ENVIRONMENT) as server:
        server.wait_until_healthy(START_TIMEOUT)
        with watching(server.pid) as memory:
            tally = asyncio.run(run(server.url, seconds, requests, questions, seed))
        left, counted = left_behind(server.url), metrics(server.url)
    write(name, tally, memory, left, counted, out)
    for line in [*tally.wrong, *tally.failed][:10]:
        print(line)
    if tally.wrong or tally.failed or tally.hung or left:
        raise typer.Exit(1)


def write(
    name: str,
    tally: Tally,
    memory: Memory,
    left: dict[str, float],
    counted: dict[str, float],
    out: Path,
) -> None:
    """The report and its picture."""
    lines(
        out / f"{name}.png",
        {"resident memory": (memory.seconds, memory.mebibytes)},
        ("seconds", "MiB of all of the server's processes"),
    )
    row: dict[str, Any] = {
        "requests": tally.num_requests,
        **tally.manners,
        "compressed requests": int(counted["headkv:compressed_requests_total"]),
        "compressions": int(counted["headkv:compressions_total"]),
        "preemptions": int(counted["vllm:num_preemptions_total"]),
        "seconds": memory.seconds[-1] if memory.seconds else 0.0,
    }
    Report(
        name=name,
        question="Does mixed traffic change an answer, or leave anything behind?",
        command=command_line("soak"),
        rows=[row],
        bars=[
            Bar("answers other than alone", len(tally.wrong), 0, True),
            Bar("requests that failed", len(tally.failed), 0, True),
            Bar("requests that hung", tally.hung, 0, True),
            Bar("gauges that do not come back to 0", len(left), 0, True),
            Bar("growth of memory, last quarter / second quarter - 1", memory.growth, 0.05, True),
        ],
        notes=["The server checked its own books in each step."],
        pictures=[f"{name}.png"],
    ).write(out)


if __name__ == "__main__":
    typer.run(main)
