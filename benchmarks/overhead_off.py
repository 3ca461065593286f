# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs where it does not compress: the same work on headkv and on stock vLLM."""

from itertools import chain
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import track

from benchmarks.harness import stepping
from benchmarks.harness.report import RESULTS, Bar, Out, Pairs, Quick, Report, command_line
from benchmarks.harness.sides import BLOCK_SIZE, Side, SideName, sides

SIDES: tuple[SideName, ...] = ("off", "headkv", "stock")
TITLES = {"off": "off (budget 0)", "headkv": "budget of the whole prompt"}


def throughput(side: Side, num_requests: int, num_tokens: tuple[int, int], seed: int) -> float:
    """Tokens generated per second of the engine's steps, from the first prompt to the last token.

    num_tokens: of a prompt, and generated for each.
    """
    prompt, generated = num_tokens
    side(stepping.add_requests, num_requests, prompt, generated, seed)
    seconds: float = side(stepping.run)
    return num_requests * generated / seconds


def row(name: str, pairs: Pairs) -> dict[str, Any]:
    return {
        "headkv": name,
        "tokens/s": median(pairs.ours),
        "stock, tokens/s": median(pairs.theirs),
        "headkv / stock": pairs.ratio,
        "half of the rounds": pairs.spread,
    }


def measure(
    num_rounds: int, num_requests: int, num_tokens: tuple[int, int]
) -> dict[SideName, list[float]]:
    """Throughputs of each side, round by round. Each round starts new engines."""
    found: dict[SideName, list[float]] = {name: [] for name in SIDES}
    # As many blocks as the work takes: each round then finds them in memory.
    num_blocks = num_requests * (sum(num_tokens) // BLOCK_SIZE + 1) + 1
    with sides(SIDES, "8-layer", 1024, 16, num_gpu_blocks_override=num_blocks) as engines:
        for index in track(range(num_rounds + 1), "rounds"):
            turn = index % len(SIDES)  # each side is next to each other one, and first, in turn
            for name in SIDES[turn:] + SIDES[:turn]:
                speed = throughput(engines[name], num_requests, num_tokens, seed=index)
                if index:  # the first is a warm-up
                    found[name].append(speed)
    return found


def main(
    starts: Annotated[int, typer.Option(min=1, help="How often the engines are started.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine per start.")] = 3,
    quick: Quick = False,
    out: Out = RESULTS,
) -> None:
    """Measure the throughput of headkv, where nothing is compressed, against stock vLLM's."""
    num_requests, num_tokens = (2, (64, 8)) if quick else (16, (512, 128))
    # Prompts are shorter than headkv's budget of 1,024 here, so that none has anything to gain.
    measured = [measure(rounds, num_requests, num_tokens) for _ in range(starts)]
    found = {name: tuple(chain.from_iterable(m[name] for m in measured)) for name in SIDES}
    pairs = {name: Pairs(found[name], found["stock"]) for name in TITLES}
    Report(
        name="overhead_off",
        question="What does headkv cost where it does not compress?",
        command=command_line("overhead_off"),
        rows=[row(title, pairs[name]) for name, title in TITLES.items()],
        bars=[
            Bar(f"Throughput / stock's, {title}", pairs[name].ratio, 0.99, at_most=False)
            for name, title in TITLES.items()
        ],
        notes=[
            f"{num_requests} requests of {num_tokens[0]} tokens, {num_tokens[1]} generated for "
            f"each. The engines were started {starts} times: where the system puts an engine's "
            "memory makes more difference than the plugin, and stays as long as the engine."
        ],
    ).write(out)


if __name__ == "__main__":
    typer.run(main)
