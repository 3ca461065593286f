# SPDX-License-Identifier: Apache-2.0
"""Clients against two real servers in pools of one size: where compression pays, and where not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.pictures import lines
from benchmarks.harness.report import RESULTS, Bar, Out, Quick, Report, command_line
from benchmarks.harness.servers import Load, Outcome, Server, servers
from benchmarks.harness.sides import BLOCK_SIZE, SideName

QUESTION: Final = "How much do clients get from one KV pool?"
SIDES: Final[tuple[SideName, ...]] = ("headkv", "stock")
RATES: Final = (0.75, 1.0, 2.0)
"""Of arrivals, as parts of the requests per second that stock vLLM can answer."""


@dataclass(frozen=True)
class Case:
    """A load, run on both sides one right after the other. budget: of headkv, in tokens."""

    name: str
    load: Load
    budget: int


@dataclass(frozen=True)
class Sizes:
    """Of a run. main: decode-heavy, and tight in a pool that holds `pool_requests` of it.

    lengths: prompts of the crossover. small: load of the crossover and the rest; budget: of all.
    """

    main: Load
    small: Load
    lengths: tuple[int, ...]
    rate_length: int
    budget: int
    pool_requests: int = 4

    @property
    def num_blocks(self) -> int:
        return self.main.pool_blocks(self.pool_requests)


FULL: Final = Sizes(
    main=Load(64, 4096, 1024, clients=64, seed=0),
    small=Load(10, 1024, 256, clients=10, seed=0),
    lengths=(256, 1024, 2048),
    rate_length=2048,
    budget=256,
)
QUICK: Final = Sizes(
    main=Load(12, 512, 128, clients=12, seed=0),
    small=Load(4, 256, 32, clients=4, seed=0),
    lengths=(128, 256),
    rate_length=256,
    budget=64,
)


@dataclass(frozen=True)
class Result:
    """What both sides gave in a case."""

    case: Case
    outcomes: dict[SideName, Outcome]

    @property
    def ratio(self) -> float:
        """Output tokens per second, headkv's over stock's."""
        headkv, stock = (self.outcomes[name].output_tokens_rate for name in SIDES)
        return headkv / stock

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The report's lines, one for each side."""
        load = self.case.load
        about = {"case": self.case.name, "prompt": load.prompt_tokens, "clients": load.clients}
        rows = []
        for name, ratio in zip(SIDES, (self.ratio, None), strict=True):
            cells = self.outcomes[name].cells
            rows.append({**about, "side": name, **cells, "headkv / stock": ratio})
        return rows


class Bench:
    """Runs cases on both servers, never two at once, each with prompts of its own."""

    def __init__(self, started: dict[SideName, Server]) -> None:
        self._started = started
        self._seeds = count(1)

    def run(self, case: Case) -> Result:
        """Both sides get the same prompts, and take turns in going first."""
        seed = next(self._seeds)
        case = replace(case, load=replace(case.load, seed=seed))
        outcomes = {
            name: self._started[name].run(
                case.load, {"headkv_budget": case.budget} if name == "headkv" else None
            )
            for name in (SIDES if seed % 2 else SIDES[::-1])
        }
        return Result(case, outcomes)


def main_case(sizes: Sizes) -> Case:
    """The one that has a bar."""
    return Case("decode-heavy, pool of four", sizes.main, sizes.budget)


def crossover_cases(sizes: Sizes) -> list[Case]:
    """All clients at once, longer prompts from case to case."""
    loads = [replace(sizes.small, prompt_tokens=length) for length in sizes.lengths]
    return [Case("prompt length", load, sizes.budget) for load in loads]


def rate_cases(sizes: Sizes, stock_rate: float) -> list[Case]:
    """Requests that come on their own. stock_rate: what stock can answer, per second."""
    load = replace(sizes.small, prompt_tokens=sizes.rate_length)
    return [
        Case(f"{part:g} x stock's rate", replace(load, rate=part * stock_rate), sizes.budget)
        for part in RATES
    ]


def shared_case(sizes: Sizes) -> Case:
    """One long prompt that stock holds once for all requests, and headkv once for each."""
    load = replace(sizes.small, prompt_tokens=sizes.main.prompt_tokens, shared=True)
    return Case("shared prompt", load, sizes.budget)


def run_all(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """The cases in the order of the report; the rates depend on what the crossover measures."""
    yield bench.run(main_case(sizes))
    yield bench.run(shared_case(sizes))
    stock_rate = 0.0
    for case in crossover_cases(sizes):
        result = bench.run(case)
        yield result
        if case.load.prompt_tokens == sizes.rate_length:
            stock_rate = result.outcomes["stock"].requests_rate
    for case in rate_cases(sizes, stock_rate):
        yield bench.run(case)


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the ratio first reaches 1, between measured points in a straight line.

    points: prompt length and ratio, by length. None where it never does.
    """
    for (shorter, low), (longer, high) in pairwise(points):
        if low < 1 <= high:
            return shorter + (longer - shorter) * (1 - low) / (high - low)
    return points[0][0] if points[0][1] >= 1 else None


def crossover_points(results: Sequence[Result]) -> list[tuple[float, float]]:
    """Prompt length and ratio of the cases that tell the crossover."""
    chosen = [one for one in results if one.case.name == "prompt length"]
    return [(float(one.case.load.prompt_tokens), one.ratio) for one in chosen]


def notes(sizes: Sizes, results: Sequence[Result]) -> list[str]:
    """How to read the table, and what it comes to."""
    length = crossover(crossover_points(results))
    pays = f"from about {length:,.0f} prompt tokens on" if length else "at none of these lengths"
    losing = [one for one in results if one.ratio < 1]
    named = ", ".join(f"{one.case.name} ({one.case.load.prompt_tokens:,})" for one in losing)
    return [
        f"The pool has {sizes.num_blocks} blocks of {BLOCK_SIZE} tokens on both sides. Requests of "
        f"headkv keep {sizes.budget} tokens. Prompts are random and differ, except for the "
        "shared one. Times between tokens (ITL) are as the client sees them: tokens that a busy "
        "client reads together count as one wait and then none.",
        f"With {sizes.small.clients} clients and {sizes.small.max_tokens} generated tokens, "
        f"compression pays {pays}. It loses in: {named or 'no case'}.",
    ]


def bars(results: Sequence[Result]) -> list[Bar]:
    """Of the first case."""
    text = "output tokens per second, decode-heavy and memory-tight, headkv / stock"
    return [Bar(text, results[0].ratio, 3, False)]


def main(
    quick: Quick = False,
    shape: Annotated[str, typer.Option(help="Of the model, see harness/shapes.py.")] = "8-layer",
    watermark: Annotated[
        float, typer.Option(help="Part of the pool that vLLM keeps free when it admits requests.")
    ] = 0.0,
    only_main: Annotated[
        bool, typer.Option("--only-main", help="Only the case that has a bar.")
    ] = False,
    out: Out = RESULTS,
) -> None:
    """Send the same requests to `vllm serve` with headkv and without, and compare.

    Both servers are up all the time, and only one of them has work. Takes about 20 minutes.
    """
    sizes = QUICK if quick else FULL
    arguments = ["--num-gpu-blocks-override", str(sizes.num_blocks)]
    arguments += ["--max-num-seqs", str(sizes.main.clients), "--watermark", str(watermark)]
    with servers(SIDES, shape, sizes.main.num_tokens, *arguments) as started:
        results: list[Result] = []
        for result in islice(run_all(Bench(started), sizes), 1 if only_main else None):
            results.append(result)
            write(sizes, results, out)  # what there is, should a long run be cut short
            typer.echo(f"{result.case.name}, {result.case.load.prompt_tokens}: {result.ratio:.2f}")


def write(sizes: Sizes, results: Sequence[Result], out: Path) -> None:
    """The report and its plot, which needs the crossover's cases."""
    rows = [row for one in results for row in one.rows]
    points, pictures, texts = crossover_points(results), [], []
    if points:
        pictures, texts = ["throughput.png"], notes(sizes, results)
        lengths, ratios = zip(*points, strict=True)
        labels = ("prompt tokens", "output tokens per second, headkv / stock")
        lines(out / pictures[0], {"all at once": (lengths, ratios)}, labels)
    command = command_line("throughput")
    Report("throughput", QUESTION, command, rows, bars(results), texts, pictures).write(out)


if __name__ == "__main__":
    typer.run(main)
