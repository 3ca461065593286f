# SPDX-License-Identifier: Apache-2.0
"""How many requests decode at once in one KV pool, and how many are preempted on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness import stepping
from benchmarks.harness.pictures import lines
from benchmarks.harness.report import RESULTS, Bar, Out, Quick, Report, command_line
from benchmarks.harness.sides import BLOCK_SIZE, Side, SideName, sides

QUESTION: Final = "How many requests decode at once in one KV pool?"
SIDES: Final[tuple[SideName, ...]] = ("headkv", "stock")
STEPS_A_CALL: Final = 256
"""A call into an engine's process must answer in minutes."""


@dataclass(frozen=True)
class Load:
    """All requests are there from the start. Lengths in tokens; ratio: what headkv keeps.

    pool_requests: as many requests of stock, with 64 tokens generated, fill the pool.
    """

    num_requests: int = 128
    prompt_tokens: int = 4096
    max_tokens: int = 128
    keep_ratio: float = 1 / 16
    pool_requests: int = 8

    @property
    def num_blocks(self) -> int:
        """Of the pool; vLLM never hands out the first one."""
        return self.pool_requests * (self.prompt_tokens // BLOCK_SIZE + 2) + 1


QUICK: Final = Load(num_requests=12, prompt_tokens=512, max_tokens=96, pool_requests=4)


@dataclass(frozen=True)
class Counts:
    """What one side did. decoding: requests in decode, step by step. seconds: of all steps."""

    decoding: tuple[int, ...]
    num_preemptions: int
    seconds: float

    @property
    def most(self) -> int:
        return max(self.decoding)


def start(llm: Any) -> None:
    """Inside the engine: keep hold of its requests, which the scheduler forgets at their end."""
    llm.watched = list(stepping.core(llm).scheduler.requests.values())


def run_steps(llm: Any, num_steps: int) -> tuple[list[int], float]:
    """Inside the engine: requests in decode after each step, until none is left, and the time.

    A request is in decode when the keys and values of its whole prompt are in the pool.
    """
    scheduler = stepping.core(llm).scheduler
    decoding: list[int] = []
    total = 0.0
    while scheduler.has_requests() and len(decoding) < num_steps:
        seconds, _ = stepping.step(llm)
        total += seconds
        running = scheduler.running
        decoding.append(sum(one.num_computed_tokens >= one.num_prompt_tokens for one in running))
    return decoding, total


def num_preemptions(llm: Any) -> int:
    """Inside the engine: of all requests since `start`."""
    return sum(request.num_preemptions for request in llm.watched)


def measure(side: Side, load: Load, asked: dict[str, Any] | None) -> Counts:
    """Run `load` to its end."""
    side(stepping.add_requests, load.num_requests, load.prompt_tokens, load.max_tokens, 1, asked)
    side(start)
    decoding: list[int] = []
    total = 0.0
    while True:
        counts, seconds = side(run_steps, STEPS_A_CALL)
        decoding += counts
        total += seconds
        if len(counts) < STEPS_A_CALL:
            return Counts(tuple(decoding), side(num_preemptions), total)


def bars(headkv: Counts, stock: Counts) -> list[Bar]:
    """The second is not measured where stock has room for all: the load says nothing then."""
    preempted = float(headkv.num_preemptions) if stock.num_preemptions else None
    return [
        Bar("most requests in decode at once, headkv / stock", headkv.most / stock.most, 10, False),
        Bar("preemptions of headkv where stock preempts", preempted, 0, True),
    ]


def row(name: str, counts: Counts) -> dict[str, Any]:
    """A line of the report's table."""
    return {
        "side": name,
        "most in decode": counts.most,
        "mean in decode": sum(counts.decoding) / len(counts.decoding),
        "preemptions": counts.num_preemptions,
        "steps": len(counts.decoding),
        "seconds": counts.seconds,
    }


def report(load: Load, counts: dict[SideName, Counts], command: str) -> Report:
    """The page."""
    note = (
        f"{load.num_requests} requests of {load.prompt_tokens:,} tokens, no two prompts alike, "
        f"{load.max_tokens} tokens generated; headkv keeps {load.keep_ratio:.3g} of each prompt. "
        f"The pool has {load.num_blocks:,} blocks of {BLOCK_SIZE} tokens on both sides: room "
        f"for {load.pool_requests} stock requests that generate {2 * BLOCK_SIZE} tokens. A step "
        "computes at most one prompt, so one request is added per step until the pool is full."
    )
    rows = [row(name, counts[name]) for name in SIDES]
    measured = bars(counts["headkv"], counts["stock"])
    return Report("capacity", QUESTION, command, rows, measured, [note], ["capacity.png"])


def measure_sides(load: Load, shape: str, **flags: Any) -> dict[SideName, Counts]:
    """One side after the other: counts, unlike times, do not depend on when they are taken.

    flags: of both engines.
    """
    arguments: dict[str, Any] = {
        **flags,
        "num_gpu_blocks_override": load.num_blocks,
        # Room for one prompt beside a token of each request.
        "max_num_batched_tokens": load.prompt_tokens + load.num_requests,
    }
    asked = {"headkv_keep_ratio": load.keep_ratio}
    max_model_len = load.prompt_tokens + load.max_tokens
    with sides(SIDES, shape, max_model_len, load.num_requests, **arguments) as started:
        return {
            name: measure(side, load, asked if name == "headkv" else None)
            for name, side in started.items()
        }


def main(
    quick: Quick = False,
    shape: Annotated[str, typer.Option(help="Of the model, see harness/shapes.py.")] = "2-layer",
    out: Out = RESULTS,
) -> None:
    """Count requests in decode, and preemptions, for headkv and stock vLLM in pools of one size.

    The model is tiny: what fits in a pool depends on lengths and blocks, not on the model.
    """
    load = QUICK if quick else Load()
    counts = measure_sides(load, shape)
    report(load, counts, command_line("capacity")).write(out)
    draw(counts, out / "capacity.png")


def draw(counts: dict[SideName, Counts], path: Path) -> None:
    """Requests in decode over the steps."""
    series = {str(name): (range(len(one.decoding)), one.decoding) for name, one in counts.items()}
    lines(path, series, ("step", "requests in decode"))


if __name__ == "__main__":
    typer.run(main)
