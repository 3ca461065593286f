# SPDX-License-Identifier: Apache-2.0
"""What a benchmark leaves behind: numbers as JSON, and a page for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import describe_machine

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Bar:
    """A bound that a measured value should keep. value: None where it was not measured."""

    text: str
    value: float | None
    limit: float
    at_most: bool

    @property
    def holds(self) -> bool | None:
        """None where it was not measured."""
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
    """One benchmark's answer.

    name: of its files. question: what it asks. command: what was typed. rows: a table, one mapping
    of column to value per line, all with the same columns. pictures: file names beside the page.
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
