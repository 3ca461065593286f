# SPDX-License-Identifier: Apache-2.0
"""The results of each cell as a row of the report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from headkv_vllm.evaluation.cells import FULL, Cell
from headkv_vllm.evaluation.intervals import Interval, bootstrap_interval
from headkv_vllm.evaluation.results import Result

UNIFORM: Final = "uniform"


@dataclass(frozen=True)
class Row:
    """One cell. Scores are 0 to 1; means are over its samples.

    against_full: this cell's score less that of the whole cache, sample by sample; None where the
        whole cache was not asked, or is this cell. against_uniform: the same, with the policy
        `uniform` at this cell's budget.
    kept_bytes, kept_tokens: per prompt; None where not known. prompt_tokens: of each prompt.
    """

    cell: Cell
    n: int
    score: Interval
    against_full: Interval | None
    against_uniform: Interval | None
    kept_bytes: float | None
    kept_tokens: float | None
    prompt_tokens: float
    output_tokens: float

    @property
    def kept_share(self) -> float | None:
        """The kept part of the prompts' tokens."""
        return None if self.kept_tokens is None else self.kept_tokens / self.prompt_tokens


def summarise(results: Iterable[Result], seed: int) -> list[Row]:
    """A row for each cell, task by task and length by length; else in the order of the results.

    seed: of the intervals.
    """
    cells = by_cell(results)
    places = list(dict.fromkeys((cell.task, cell.length) for cell in cells))
    ordered = sorted(cells, key=lambda cell: places.index((cell.task, cell.length)))
    return [_row(cell, cells, seed) for cell in ordered]


def by_cell(results: Iterable[Result]) -> dict[Cell, list[Result]]:
    """The results of each cell, in their order."""
    cells: dict[Cell, list[Result]] = {}
    for result in results:
        cells.setdefault(result.cell, []).append(result)
    return cells


def _row(cell: Cell, cells: Mapping[Cell, Sequence[Result]], seed: int) -> Row:
    results = cells[cell]
    return Row(
        cell=cell,
        n=len(results),
        score=bootstrap_interval([result.score for result in results], seed),
        against_full=_against(replace(cell, policy=FULL, budget=None), cell, cells, seed),
        against_uniform=_against(replace(cell, policy=UNIFORM), cell, cells, seed),
        kept_bytes=_mean([result.kept_bytes for result in results]),
        kept_tokens=_mean([result.kept_tokens for result in results]),
        prompt_tokens=sum(result.num_prompt_tokens for result in results) / len(results),
        output_tokens=sum(result.num_output_tokens for result in results) / len(results),
    )


def _against(
    other: Cell, cell: Cell, cells: Mapping[Cell, Sequence[Result]], seed: int
) -> Interval | None:
    """Paired: the samples' own difficulty, which both share, falls out."""
    scores = {r.sample: r.score for r in cells.get(other, ())}
    differences = [r.score - scores[r.sample] for r in cells[cell] if r.sample in scores]
    if cell == other or not differences:
        return None
    return bootstrap_interval(differences, seed)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
