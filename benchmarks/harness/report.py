# SPDX-License-Identifier: Apache-2.0
"""A benchmark's command line, its measurements in pairs, and its results as JSON and as a page."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer

from benchmarks.harness.machine import describe_machine

Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that it runs.")]
Out = Annotated[Path, typer.Option(help="The folder of the numbers, the page and the pictures.")]


def command_line(name: str) -> str:
    """The command that runs the benchmark `name` now."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])


@dataclass(frozen=True)
class Pairs:
    """Measurements of two sides. Those with the same index were taken one after the other.

    The speed of a machine drifts, so only measurements that are close in time can be compared.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.theirs):
            raise ValueError(f"{len(self.ours)} and {len(self.theirs)} measurements: not pairs")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours divided by theirs, for each pair."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the ratios lie between these two. Both are the ratio if there is one pair."""
        if len(self.ratios) == 1:
            return self.ratio, self.ratio
        first, _, last = quantiles(self.ratios, n=4, method="inclusive")
        return first, last

    @property
    def spread(self) -> str:
        """The quartiles, for a table."""
        return "{:.3f} to {:.3f}".format(*self.quartiles)


RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Bar:
    """A bound for a measured value. value: None if it was not measured."""

    text: str
    value: float | None
    limit: float
    at_most: bool

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps the bound; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Text, bound, measured value and verdict, for a table."""
        verdict = {None: "not measured", True: "holds", False: "**falls short**"}[self.holds]
        sign = "at most" if self.at_most else "at least"
        measured = "" if self.value is None else f"{self.value:.4g}"
        return self.text, f"{sign} {self.limit:g}", measured, verdict


@dataclass(frozen=True)
class Report:
    """The result of a benchmark.

    name: the name of its files. question: what it measures. command: how it was run. rows: a table,
    one mapping of column to value per line, all with the same columns. pictures: file names in the
    folder of the page.
    """

    name: str
    question: str
    command: str
    rows: Sequence[Mapping[str, Any]]
    bars: Sequence[Bar]
    notes: Sequence[str] = ()
    pictures: Sequence[str] = ()

    def write(self, folder: Path = RESULTS) -> None:
        """Write `name`.json and `name`.md into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "machine": describe_machine()}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.page(content["machine"]))

    def page(self, machine: Mapping[str, str]) -> str:
        """The page, as markdown."""
        parts = [
            f"# {self.question}",
            f"```\n{self.command}\n```",
            ", ".join(f"{name} {value}" for name, value in machine.items()),
        ]
        if self.bars:
            parts.append(table(("", "bound", "measured", ""), [bar.cells for bar in self.bars]))
        parts += [f"![{self.question}]({picture})" for picture in self.pictures]
        if self.rows:
            parts.append(table(tuple(self.rows[0]), [tuple(row.values()) for row in self.rows]))
        return "\n\n".join([*parts, *self.notes]) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table. Numbers are shown with four digits; None is an empty cell."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
