# SPDX-License-Identifier: Apache-2.0
"""How long a decode step takes: compressed prompts, the same prompts in stock vLLM, and short ones.

The short twin is stock vLLM whose prompts have as many tokens as a budget keeps: no compressed
prompt can be read faster than one that was never longer. Three engines live at once and take
turns, so that each round compares steps of the same quarter of a second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import track

from benchmarks.harness import stepping
from benchmarks.harness.pictures import grouped_bars
from benchmarks.harness.report import RESULTS, Bar, Out, Pairs, Quick, Report, command_line
from benchmarks.harness.sides import BLOCK_SIZE, Side, SideName, sides

NAMES: tuple[SideName, ...] = ("headkv", "twin", "stock")
STEPS_OF_A_TURN = 6
"""Few, and many turns: a machine that others share changes its speed by 10 % within seconds."""
WARM_UP = 2
"""Steps at the start of a turn that find the caches full of another engine's data."""


@dataclass(frozen=True)
class Case:
    """`num_requests` prompts of `num_prompt_tokens`, of which each head keeps `budget`.

    faster: how many times faster than stock the step should be, where there is a bar.
    names: the sides that are measured. num_rounds: turns of each, if not asked otherwise.
    """

    num_requests: int
    num_prompt_tokens: int
    budget: int
    shape: str = "8-layer"
    faster: float | None = None
    names: tuple[SideName, ...] = NAMES
    num_rounds: int = 60

    @property
    def title(self) -> str:
        size = f"{self.num_requests} x {self.num_prompt_tokens:,}, budget {self.budget:,}"
        return size if self.shape == "8-layer" else f"{self.shape}: {size}"


CASES = (
    Case(8, 8192, 512, faster=4.3),
    Case(32, 2048, 256, names=("headkv", "twin")),
    Case(4, 16384, 512, faster=5.5),
    # Stock vLLM would read these two prompts for four minutes.
    Case(2, 32768, 1024, names=("headkv", "twin")),
    Case(2, 1024, 128, shape="qwen3-0.6b", num_rounds=20),
)
QUICK = (Case(2, 512, 128, faster=1.0),)


@dataclass(frozen=True)
class Steps:
    """The median step of each round, in seconds, by side."""

    case: Case
    rounds: dict[SideName, tuple[float, ...]]

    def against(self, other: SideName) -> Pairs:
        return Pairs(self.rounds["headkv"], self.rounds[other])

    @property
    def row(self) -> dict[str, Any]:
        twin = self.against("twin")
        milliseconds = {f"{name}, ms": self.milliseconds(name) for name in NAMES}
        return {
            "requests x prompt": self.case.title,
            **milliseconds,
            "headkv / twin": twin.ratio,
            "half of the rounds": twin.spread,
            "stock / headkv": self.stock_ratio,
        }

    def milliseconds(self, name: SideName) -> float | None:
        """The median step; None where it was not measured."""
        return 1e3 * median(self.rounds[name]) if name in self.rounds else None

    @property
    def stock_ratio(self) -> float | None:
        """Stock's step over headkv's."""
        return 1 / self.against("stock").ratio if "stock" in self.rounds else None

    @property
    def bars(self) -> list[Bar]:
        if self.case.shape != "8-layer":
            return []
        twin = self.against("twin").ratio
        bars = [Bar(f"Decode step / short twin's, {self.case.title}", twin, 1.05, at_most=True)]
        if self.case.faster:
            text = f"Stock's decode step / headkv's, {self.case.title}"
            bars.append(Bar(text, self.stock_ratio, self.case.faster, at_most=False))
        return bars


def measure_all(cases: Sequence[Case], rounds: int | None, **flags: Any) -> Iterator[Steps]:
    """Cases of one shape, one after the other in the same engines. flags: of all engines.

    rounds: turns of each engine, if not the case's own number.
    """
    turns = [rounds or case.num_rounds for case in cases]
    most_tokens = [
        c.num_prompt_tokens + (n + 1) * STEPS_OF_A_TURN for c, n in zip(cases, turns, strict=True)
    ]
    num_blocks = max(
        case.num_requests * (tokens // BLOCK_SIZE + 2) + 1
        for case, tokens in zip(cases, most_tokens, strict=True)
    )
    limits = (max(most_tokens) + 64, max(8, *(case.num_requests for case in cases)))
    names = tuple(name for name in NAMES if any(name in case.names for case in cases))
    flags["num_gpu_blocks_override"] = num_blocks
    with sides(names, cases[0].shape, *limits, **flags) as engines:
        for case, num_rounds, tokens in zip(cases, turns, most_tokens, strict=True):
            yield measure(case, engines, num_rounds, tokens)


def measure(case: Case, engines: dict[SideName, Side], num_rounds: int, most_tokens: int) -> Steps:
    """Prefill on each side, and then take turns. most_tokens: that a request may come to."""
    for name in case.names:
        length = case.budget if name == "twin" else case.num_prompt_tokens
        asked = {"headkv_budget": case.budget} if name == "headkv" else None
        engines[name](stepping.add_requests, case.num_requests, length, most_tokens, 0, asked)
        engines[name](stepping.prefill)
    rounds = [
        {name: turn(engines[name]) for name in (case.names if index % 2 else case.names[::-1])}
        for index in track(range(num_rounds), case.title)
    ]
    for name in case.names:
        engines[name](stepping.abort_all)
    return Steps(case, {name: tuple(each[name] for each in rounds) for name in case.names})


def turn(side: Side) -> float:
    """The median of some steps."""
    return median(side(stepping.decode, STEPS_OF_A_TURN)[WARM_UP:])


def main(
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Turns of each engine; fewer of large models if not set."),
    ] = None,
    quick: Quick = False,
    out: Out = RESULTS,
) -> None:
    """Measure decode steps of headkv, of stock vLLM, and of stock vLLM with short prompts."""
    measured: list[Steps] = []
    for _, cases in groupby(QUICK if quick else CASES, attrgetter("shape")):
        for steps in measure_all(tuple(cases), rounds):
            measured.append(steps)
            write(measured, out)  # what there is, should a long run be cut short


def write(measured: list[Steps], out: Path) -> None:
    """The report and its picture."""
    milliseconds = {name: [steps.milliseconds(name) or 0.0 for steps in measured] for name in NAMES}
    picture = "decode_step.png"
    grouped_bars(out / picture, [m.case.title for m in measured], milliseconds, "ms per step")
    Report(
        name="decode_step",
        question="How long does a decode step over compressed prompts take?",
        command=command_line("decode_step"),
        rows=[steps.row for steps in measured],
        bars=[bar for steps in measured for bar in steps.bars],
        notes=["A round compares the medians of neighbouring turns; ratios are medians of rounds."],
        pictures=[picture],
    ).write(out)


if __name__ == "__main__":
    typer.run(main)
