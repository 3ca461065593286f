# SPDX-License-Identifier: Apache-2.0
"""What every sample gave, kept on disk, so that an interrupted run goes on where it stopped."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headkv_vllm.errors import HeadKVError
from headkv_vllm.evaluation.cells import Budget, Cell
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.output.json_lines import append_line, complete_lines, drop_cut_line


class EvaluationError(HeadKVError):
    """An evaluation cannot go on, or its results cannot be used."""


class Result(BaseModel):
    """One sample's score in one cell, and what it is made of.

    run: digest of what the answers depend on besides cell and sample, see `RunRecord`.
    sample: digest of all that the sample holds, so that another text under its id is noticed.
    text: what was scored. forced_tokens: output tokens before it, in question-agnostic runs.
    num_prompt_tokens, num_output_tokens: as the server counted them, without the forced ones.
    kept_bytes, full_bytes: KV memory for the prompt, and in stock vLLM; None where not known.
    kept_tokens: of the prompt, per KV head on average; None where not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    run: str
    task: str
    length: int
    policy: str
    budget: int | float | None
    id: str
    sample: str
    score: float = Field(ge=0, le=1)
    text: str
    depth: float | None
    num_prompt_tokens: int = Field(ge=0)
    num_output_tokens: int = Field(ge=0)
    forced_tokens: int = Field(ge=0, default=0)
    kept_bytes: int | None
    full_bytes: int | None
    kept_tokens: float | None

    @property
    def cell(self) -> Cell:
        """The cell that it belongs to."""
        return Cell(self.task, self.length, self.policy, self.budget)


Key = tuple[str, int, str, Budget, str, str]


def sample_digest(sample: Sample) -> str:
    """16 hex digits over all that `sample` holds."""
    return hashlib.sha256(json.dumps(asdict(sample)).encode()).hexdigest()[:16]


class ResultsFile:
    """`results.jsonl`: one result a line, on disk before the next is known."""

    def __init__(self, path: Path, run: str, results: Sequence[Result] = ()) -> None:
        self.path, self.run = path, run
        self._results = {_key(result.cell, result.id, result.sample): result for result in results}

    @classmethod
    def resume(cls, path: Path, run: str) -> Self:
        """The results of `run` at `path`; none if there is no file.

        A last line that was cut short is dropped. Raises EvaluationError when a line is of another
        run or no result, or the file cannot be read or written.
        """
        try:
            lines = complete_lines(path)
            results = [_read(path, number, line) for number, line in enumerate(lines, start=1)]
            _check_run(path, results, run)
            drop_cut_line(path, lines)
        except OSError as error:
            raise _unusable(path, error) from None
        return cls(path, run, results)

    def find(self, cell: Cell, sample: Sample) -> Result | None:
        """What this very sample gave in `cell`, if it was asked."""
        return self._results.get(_key(cell, sample.id, sample_digest(sample)))

    def append(self, result: Result) -> None:
        """Keep `result`; it is on disk when this returns. Raises EvaluationError."""
        assert result.run == self.run
        try:
            append_line(self.path, result.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise _unusable(self.path, error) from None
        self._results[_key(result.cell, result.id, result.sample)] = result

    def __len__(self) -> int:
        return len(self._results)


def _key(cell: Cell, sample_id: str, digest: str) -> Key:
    return (cell.task, cell.length, cell.policy, cell.budget, sample_id, digest)


def _read(path: Path, number: int, line: bytes) -> Result:
    try:
        return Result.model_validate_json(line)
    except ValidationError:
        raise EvaluationError(
            f"{str(path)!r} is damaged in line {number}: remove that line, or give another --out"
        ) from None


def _check_run(path: Path, results: Sequence[Result], run: str) -> None:
    for number, result in enumerate(results, start=1):
        if result.run != run:
            raise EvaluationError(
                f"{str(path)!r} holds results of another run in line {number}: "
                "give another --out, or that run's options"
            )


def _unusable(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(f"{str(path)!r} cannot be used: {error.strerror}")
