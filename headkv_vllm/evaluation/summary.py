# SPDX-License-Identifier: Apache-2.0
"""Summarises the results of each cell: mean scores with intervals, kept memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.evaluation.cells import FULL, Cell
from headkv_vllm.evaluation.results import Result


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """The percentile bootstrap of the mean (Efron, 1979). The same seed gives the same interval.

    If all values are equal the interval has no width, which says nothing about other samples.
    Raises SettingsError when there are no values, when `confidence` is not between 0 and 1, or when
    `resamples` is below 1.
    """
    if not len(values):
        raise SettingsError("there are no values, expected at least one")
    if not 0 < confidence < 1:
        raise SettingsError(
            f"confidence is {shown(confidence)}, allowed are values between 0 and 1"
        )
    if resamples < 1:
        raise SettingsError(f"resamples is {shown(resamples)}, allowed are integers from 1")
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # One resample at a time: all of them together take too much memory for many values.
    means = [rng.choice(array, array.size).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high))


UNIFORM: Final = "uniform"


@dataclass(frozen=True)
class SummaryRow:
    """One cell's row in the report. Scores are 0 to 1; means are over the samples.

    against_full: this cell's score minus the score of the full cache, sample by sample. None if
        this is the cell of the full cache, or if there is no such cell.
    against_uniform: the same for the policy `uniform` with this cell's budget.
    kept_bytes, kept_tokens: mean per prompt, None if not known. prompt_tokens: mean per prompt.
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
        """The kept part of the prompts' tokens, 0 to 1."""
        return None if self.kept_tokens is None else self.kept_tokens / self.prompt_tokens


def summarise(results: Iterable[Result], seed: int) -> list[SummaryRow]:
    """A row for each cell, ordered by task and length, then as in `results`.

    seed: for the bootstrap intervals.
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


def _row(cell: Cell, cells: Mapping[Cell, Sequence[Result]], seed: int) -> SummaryRow:
    results = cells[cell]
    return SummaryRow(
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
    """The mean difference of paired samples, so that the difficulty of a sample cancels out."""
    scores = {r.sample: r.score for r in cells.get(other, ())}
    differences = [r.score - scores[r.sample] for r in cells[cell] if r.sample in scores]
    if cell == other or not differences:
        return None
    return bootstrap_interval(differences, seed)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
