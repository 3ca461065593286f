# SPDX-License-Identifier: Apache-2.0
"""What compressing adds to the time to the first token, and to the memory at its peak.

One prompt at a time, each side reading the same one right after the other. The first token's time
is that of the engine's steps until it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import track

from benchmarks.harness import compressing, stepping
from benchmarks.harness.pictures import grouped_bars
from benchmarks.harness.report import RESULTS, Bar, Out, Pairs, Quick, Report, command_line
from benchmarks.harness.shapes import SHAPES
from benchmarks.harness.sides import BLOCK_SIZE, Side, SideName, sides

NAMES: tuple[SideName, ...] = ("headkv", "stock")
SHAPE = "8-layer"
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """`num_pairs` prompts of `num_prompt_tokens` for each start of the engines.

    most: the bar, headkv's time over stock's.
    """

    num_prompt_tokens: int
    num_pairs: int
    most: float


CASES = (Case(16384, 1, 1.03), Case(8192, 3, 1.03), Case(1024, 10, 1.10))
QUICK = (Case(512, 2, 1.5),)


@dataclass(frozen=True)
class Prefill:
    """One case's numbers.

    seconds: headkv's and stock's, prompt by prompt. compression: the part of headkv's that
    compressed. peak: bytes by which the worker's resident memory rose at most meanwhile.
    """

    case: Case
    seconds: Pairs
    compression: tuple[float, ...]
    peak: int

    @classmethod
    def of_starts(cls, starts: Sequence["Prefill"]) -> "Prefill":
        """The same case in engines that were started several times, taken together."""
        ours, theirs, compression = (
            tuple(chain.from_iterable(each))
            for each in zip(
                *((s.seconds.ours, s.seconds.theirs, s.compression) for s in starts), strict=True
            )
        )
        peak = max(each.peak for each in starts)
        return cls(starts[0].case, Pairs(ours, theirs), compression, peak)

    @property
    def row(self) -> dict[str, Any]:
        share = median(
            part / whole for part, whole in zip(self.compression, self.seconds.ours, strict=True)
        )
        return {
            "prompt": f"{self.case.num_prompt_tokens:,}",
            "headkv, ms": 1e3 * median(self.seconds.ours),
            "stock, ms": 1e3 * median(self.seconds.theirs),
            "headkv / stock": self.seconds.ratio,
            "half of the pairs": self.seconds.spread,
            "compressing, ms": 1e3 * median(self.compression),
            "of headkv's time, %": 100 * share,
            "memory while compressing, MiB": self.peak / MIB,
        }

    @property
    def bars(self) -> list[Bar]:
        title = f"{self.case.num_prompt_tokens:,} tokens"
        allowed = 64 + selected_bytes(self.case.num_prompt_tokens) / MIB
        return [
            Bar(
                f"Time to first token / stock's, {title}", self.seconds.ratio, self.case.most, True
            ),
            Bar(f"Memory to compress, MiB, {title}", self.peak / MIB, round(allowed, 1), True),
        ]


def selected_bytes(num_prompt_tokens: int, budget: int = 512) -> int:
    """The keys and values that one layer keeps, in bfloat16."""
    shape = SHAPES[SHAPE]
    num_kept = min(budget, num_prompt_tokens) * shape.num_key_value_heads
    return 2 * 2 * num_kept * shape.head_dim


def measure_start(cases: Sequence[Case], is_first: bool) -> list[Prefill]:
    """All cases, in engines that are started for them."""
    longest = max(case.num_prompt_tokens for case in cases)
    # Little more than one prompt's blocks, so that the pool is all in memory after the first.
    num_blocks = longest // BLOCK_SIZE + 64
    with sides(NAMES, SHAPE, longest + 64, 8, num_gpu_blocks_override=num_blocks) as engines:
        for side in engines.values():  # what the longest prompt will leave of the pool
            read(side, Case(2048 if longest > 2048 else 64, 1, 0), 0)
        return [measure(case, engines, is_first) for case in cases]


def measure(case: Case, engines: dict[SideName, Side], is_weighed: bool) -> Prefill:
    """The same prompts on both sides, in turns. is_weighed: one more says what memory it takes."""
    engines["headkv"](compressing.watch, "time")
    seconds: dict[SideName, list[float]] = {name: [] for name in NAMES}
    compression = []
    for index in track(range(case.num_pairs), f"{case.num_prompt_tokens:,} tokens"):
        # The order alternates, so that a drift of the machine's speed favours no side.
        for name in NAMES if index % 2 else NAMES[::-1]:
            seconds[name].append(read(engines[name], case, index))
        compression.append(engines["headkv"](compressing.take)[0])
    peak = 0
    if is_weighed:
        engines["headkv"](compressing.watch, "memory")
        read(engines["headkv"], case, case.num_pairs)
        _, peak = engines["headkv"](compressing.take)
    pairs = Pairs(*(tuple(seconds[name]) for name in NAMES))
    return Prefill(case, pairs, tuple(compression), peak)


def read(side: Side, case: Case, index: int) -> float:
    """The time to the first token of one prompt."""
    asked = {"headkv_budget": 512 if case.num_prompt_tokens > 512 else 128}
    side(stepping.add_requests, 1, case.num_prompt_tokens, 4, index, asked)
    first_token: float = side(stepping.prefill)
    side(stepping.abort_all)
    return first_token


def main(
    starts: Annotated[int, typer.Option(min=1, help="How often the engines are started.")] = 2,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompts of each length per start; fewer of long ones if not set."
        ),
    ] = None,
    quick: Quick = False,
    out: Out = RESULTS,
) -> None:
    """Measure the time to the first token of headkv and of stock vLLM."""
    cases = QUICK if quick else CASES
    chosen = [Case(c.num_prompt_tokens, pairs or c.num_pairs, c.most) for c in cases]
    by_start = [measure_start(chosen, is_first=index == 0) for index in range(starts)]
    measured = [Prefill.of_starts(each) for each in zip(*by_start, strict=True)]
    picture = "prefill.png"
    groups = [f"{each.case.num_prompt_tokens:,} tokens" for each in measured]
    milliseconds = {
        "headkv": [1e3 * median(each.seconds.ours) for each in measured],
        "of it compressing": [1e3 * median(each.compression) for each in measured],
        "stock": [1e3 * median(each.seconds.theirs) for each in measured],
    }
    grouped_bars(out / picture, groups, milliseconds, "ms to the first token")
    Report(
        name="prefill",
        question="What does compression add to the time to the first token?",
        command=command_line("prefill"),
        rows=[each.row for each in measured],
        bars=[bar for each in measured for bar in each.bars],
        notes=[
            f"The engines were started {starts} times: where the system puts an engine's memory "
            "makes a difference of some percent, and stays as long as the engine. "
            "Memory: how far the worker's resident memory rises while a layer compresses, at most. "
            "The bar is 64 MiB and what a layer selects on average."
        ],
        pictures=[picture],
    ).write(out)


if __name__ == "__main__":
    typer.run(main)
