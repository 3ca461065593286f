# SPDX-License-Identifier: Apache-2.0
"""The comparison with kvpress as numbers and as a page."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.kvpress_cells import Cell
from headkv_vllm.evaluation.intervals import Interval, bootstrap_interval

SEED: Final = 0
EXPLANATIONS: Final = Path(__file__).with_name("kvpress_explained.md")


@dataclass(frozen=True)
class Side:
    """What one side gave on the prompts of a cell, in their order.

    scores: the part of each prompt's questions that is answered in full.
    values: the part of its value words that is right. texts: the answers.
    kept: prompt tokens per KV head on average.
    fewest, most: prompt tokens that any head keeps of any prompt; None where not measured.
    """

    scores: tuple[float, ...]
    values: tuple[float, ...]
    texts: tuple[str, ...]
    kept: float
    fewest: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Line:
    """A cell of the report. difference: ours less theirs, prompt by prompt."""

    cell: Cell
    num_prompts: int
    num_questions: int
    ours: Interval
    theirs: Interval
    difference: Interval
    values_ours: Interval
    values_theirs: Interval
    kept_ours: float
    kept_theirs: float
    fewest_theirs: int | None
    most_theirs: int | None
    same_answers: float

    @property
    def intervals_overlap(self) -> bool:
        return self.ours.low <= self.theirs.high and self.theirs.low <= self.ours.high

    @property
    def agrees(self) -> bool:
        """Whether no difference at all is within the interval of the difference."""
        return self.difference.low <= 0 <= self.difference.high


def compare(cell: Cell, num_questions: int, ours: Side, theirs: Side) -> Line:
    """Both sides of `cell`. num_questions: of all its prompts."""
    differences = [one - other for one, other in zip(ours.scores, theirs.scores, strict=True)]
    same = [one == other for one, other in zip(ours.texts, theirs.texts, strict=True)]
    return Line(
        cell,
        len(same),
        num_questions,
        bootstrap_interval(ours.scores, SEED),
        bootstrap_interval(theirs.scores, SEED),
        bootstrap_interval(differences, SEED),
        bootstrap_interval(ours.values, SEED),
        bootstrap_interval(theirs.values, SEED),
        ours.kept,
        theirs.kept,
        theirs.fewest,
        theirs.most,
        sum(same) / len(same),
    )


def document(lines: Sequence[Line], about: dict[str, Any]) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        **about,
        "cells": [
            {
                **asdict(line),
                "intervals_overlap": line.intervals_overlap,
                "agrees": line.agrees,
            }
            for line in lines
        ],
    }


def page(lines: Sequence[Line], about: dict[str, Any]) -> str:
    """All of it as Markdown. about: as `kvpress_parity` fills it."""
    even = [line for line in lines if line.cell.num_tokens != about["num_tokens"]]
    main = [line for line in lines if line not in even]
    parts = [
        "# The same prompts in kvpress",
        _introduction(about),
        "## Result",
        _verdict(main, even),
        f"Prompts of {about['num_tokens']} tokens:",
        _table(main),
        f"Prompts of {even[0].cell.num_tokens} tokens, which leave nothing after the last whole "
        "block but the window, so that both sides choose the same number:",
        _table(even),
        EXPLANATIONS.read_text().strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(about: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    theirs = ", ".join(f"{name} {version}" for name, version in about["kvpress_versions"].items())
    return (
        f"Made by `{about['command']}` on {about['machine']}: "
        f"{about['minutes']['kvpress']:.0f} min for kvpress's answers, "
        f"{about['minutes']['engine']:.0f} min for the engine's."
        f"\nOurs, in the engine: {listed}. kvpress, in an environment of its own: {theirs}."
        "\nModel: the needle model; SHA-256 of its weights, configuration and tokenizer: "
        f"{about['checkpoint'][:16]}."
        "\n\nEach number is the part of the questions that is answered in full, in percent, with "
        'its 95 % bootstrap interval over the prompts. "Kept" is prompt tokens per KV head on '
        "average, window included: ours as planned (`headkv_vllm/budgets/plan.py`), kvpress's "
        "counted in the caches and masks of every prompt, with the fewest and the most of any head."
        " The difference is taken prompt by prompt; a star marks an interval without 0. "
        '"Words" is the part of the answers\' value words that is right, ours / kvpress. "Same" is '
        "the part of the prompts to which both sides give the same answer, token by token."
    )


def _verdict(main: Iterable[Line], even: Iterable[Line]) -> str:
    texts = []
    for pooling in ("avg", "max"):
        for where, lines in (("", main), (" at the length without a tail", even)):
            chosen = [
                line
                for line in lines
                if (line.cell.ours.policy, line.cell.ours.pooling) == ("uniform", pooling)
                and line.cell.ours.budget
            ]
            if chosen:
                inside = sum(line.intervals_overlap for line in chosen)
                agree = sum(line.agrees for line in chosen)
                texts.append(
                    f"- `uniform` with pooling `{pooling}` and SnapKVPress{where}: the intervals "
                    f"overlap in {inside} of {len(chosen)} cells, and that of the difference "
                    f"holds 0 in {agree}."
                )
    return "\n".join(texts)


def _table(lines: Iterable[Line]) -> str:
    columns: tuple[str, ...] = (
        "task",
        "questions",
        "kept",
        "ours",
        "%",
        "kvpress",
        "%",
        "its heads keep",
    )
    columns += ("difference", "words", "same")
    rows = [columns, ("---",) * len(columns), *map(_row, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: Line) -> tuple[str, ...]:
    kept = {f"{line.kept_ours:g}", f"{line.kept_theirs:g}"}
    return (
        line.cell.task,
        str(line.num_questions),
        " / ".join(sorted(kept)),
        str(line.cell.ours),
        percent(line.ours),
        str(line.cell.theirs),
        percent(line.theirs),
        f"{line.fewest_theirs} to {line.most_theirs}",
        percent(line.difference, "+") + ("" if line.agrees else " *"),
        f"{100 * line.values_ours.mean:.1f} / {100 * line.values_theirs.mean:.1f}",
        f"{line.same_answers:.0%}",
    )


def percent(interval: Interval, sign: str = "") -> str:
    """Of shares: their mean, and its bounds."""
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"
