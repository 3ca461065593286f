# SPDX-License-Identifier: Apache-2.0
"""Long answers: what compressing requests while they generate costs, and what it gives."""

from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.report import RESULTS, Bar, Out, Pairs, Quick, Report, command_line
from benchmarks.harness.servers import Load, Outcome, Server, servers
from benchmarks.harness.sides import BLOCK_SIZE

QUESTION: Final = "What do long answers cost, if requests are compressed while they generate?"
NUM_PAIRS: Final = 3


@dataclass(frozen=True)
class Sizes:
    """Of a run. step: few requests, which all run at once. pool: many requests, in a pool that
    holds `pool_requests` of them in stock vLLM. budget, every: of headkv's requests, in tokens.
    """

    step: Load
    pool: Load
    budget: int
    every: int
    pool_requests: int = 4

    @property
    def num_blocks(self) -> int:
        return self.pool.pool_blocks(self.pool_requests)


FULL: Final = Sizes(
    step=Load(8, 512, 2000, clients=8, seed=0),
    pool=Load(32, 512, 4096, clients=32, seed=0),
    budget=256,
    every=256,
)
QUICK: Final = Sizes(
    step=Load(4, 256, 128, clients=4, seed=0),
    pool=Load(8, 256, 256, clients=8, seed=0),
    budget=64,
    every=64,
)


def rows_of(name: str, sides: dict[str, Outcome]) -> list[dict[str, Any]]:
    """The report's lines of one run of each side."""
    return [{"case": name, "side": side, **outcome.cells} for side, outcome in sides.items()]


def measure_step(server: Server, sizes: Sizes, seeds: "count[int]") -> tuple[Pairs, list[Any]]:
    """The same requests, compressed again and again or only at their prompt's end."""
    once: dict[str, Any] = {"headkv_budget": sizes.budget, "headkv_compress_every": 0}
    again = {**once, "headkv_compress_every": sizes.every}
    seconds: dict[str, list[float]] = {"again": [], "once": []}
    rows = []
    for pair in range(NUM_PAIRS):
        load = replace(sizes.step, seed=next(seeds))
        order = [("again", again), ("once", once)]
        sides = {}
        for name, arguments in order if pair % 2 else order[::-1]:
            # Both find their prompts in the prefix cache.
            server.run(replace(load, max_tokens=2), arguments)
            sides[name] = server.run(load, arguments)
            seconds[name].append(sides[name].duration - sides[name].ttft_p50 / 1000)
        rows += rows_of("decode step", {f"headkv, {name}": sides[name] for name in seconds})
    return Pairs(tuple(seconds["again"]), tuple(seconds["once"])), rows


def main(
    quick: Quick = False,
    shape: Annotated[str, typer.Option(help="Of the model, see harness/shapes.py.")] = "8-layer",
    only_step: Annotated[
        bool, typer.Option("--only-step", help="Only the first case, which takes ten minutes.")
    ] = False,
    out: Out = RESULTS,
) -> None:
    """Compare long answers of headkv, compressed again or not, and of stock vLLM.

    Both servers are up all the time, and only one of them has work. Takes 20 to 60 minutes.
    """
    sizes = QUICK if quick else FULL
    arguments = ["--num-gpu-blocks-override", str(sizes.num_blocks)]
    arguments += ["--max-num-seqs", str(sizes.pool.clients)]
    seeds = count(1)
    with servers(("headkv", "stock"), shape, sizes.pool.num_tokens, *arguments) as started:
        pairs, rows = measure_step(started["headkv"], sizes, seeds)
        write(sizes, pairs, rows, None, out)
        typer.echo(f"decode step, again / once: {pairs.ratio:.3f}")
        if only_step:
            return
        load = replace(sizes.pool, seed=next(seeds))
        own = {"headkv_budget": sizes.budget, "headkv_compress_every": sizes.every}
        sides = {
            "headkv, again": started["headkv"].run(load, own),
            "stock": started["stock"].run(load),
        }
        rows += rows_of("pool of four", sides)
        write(sizes, pairs, rows, sides, out)


def write(
    sizes: Sizes,
    pairs: Pairs,
    rows: list[dict[str, Any]],
    sides: dict[str, Outcome] | None,
    out: Any,
) -> None:
    """The report. sides: of the pool of four, once it is measured."""
    gain = preemptions = None
    if sides:
        ours, stock = sides["headkv, again"], sides["stock"]
        gain, preemptions = ours.output_tokens_rate / stock.output_tokens_rate, ours.num_preemptions
    load, pool = sizes.step, sizes.pool
    bars = [
        Bar("seconds from the first token on, compressed again / once", pairs.ratio, 1.05, True),
        Bar("output tokens per second in a pool of four, headkv / stock", gain, 3, False),
        Bar("preemptions of headkv in it", preemptions, 0, True),
    ]
    notes = [
        f"Requests of headkv keep {sizes.budget} tokens and are compressed again every "
        f"{sizes.every}. The first case has {load.num_prompts} requests of {load.prompt_tokens} + "
        f"{load.max_tokens} tokens at once, in {NUM_PAIRS} pairs, whose prompts are cached (half "
        f"of the ratios lie in {pairs.spread}). The second has {pool.num_prompts} requests of "
        f"{pool.prompt_tokens} + {pool.max_tokens} tokens and {sizes.num_blocks} blocks of "
        f"{BLOCK_SIZE} tokens on both sides, which is what {sizes.pool_requests} of them hold in "
        "stock vLLM.",
    ]
    command = command_line("generation")
    Report("generation", QUESTION, command, rows, bars, notes).write(out)


if __name__ == "__main__":
    typer.run(main)
