# SPDX-License-Identifier: Apache-2.0
"""Keeps the result of every sample on disk, so that an interrupted run can continue."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import Budget, Cell
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.output.files import append_line, complete_lines, drop_cut_line


class Result(BaseModel):
    """The score of one sample in one cell, with its answer and its KV memory.

    run: digest of what the answers depend on besides cell and sample, see `RunRecord`.
    sample: digest of the sample's content, which detects another text with the same id.
    text: the scored answer. forced_tokens: forced tokens before it, in question-agnostic runs.
    num_prompt_tokens, num_output_tokens: the server's counts, without forced tokens.
    kept_bytes, full_bytes: KV memory of the prompt, here and in stock vLLM; None if not known.
    kept_tokens: kept prompt tokens per KV head, on average; None if not known.
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
        """The cell of this result."""
        return Cell(self.task, self.length, self.policy, self.budget)


Key = tuple[str, int, str, Budget, str, str]


def sample_digest(sample: Sample) -> str:
    """A digest of the sample's content, 16 hex digits."""
    return hashlib.sha256(json.dumps(asdict(sample)).encode()).hexdigest()[:16]


class ResultsFile:
    """`results.jsonl`: one result per line, which is on disk before the next one is added."""

    def __init__(self, path: Path, run: str, results: Sequence[Result] = ()) -> None:
        self.path, self.run = path, run
        self._results = {_key(result.cell, result.id, result.sample): result for result in results}

    @classmethod
    def resume(cls, path: Path, run: str) -> Self:
        """The results of `run` at `path`; empty if there is no file.

        An incomplete last line is dropped. Raises EvaluationError when a line is damaged or belongs
        to another run, or when the file cannot be read or written.
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
        """The result of exactly this sample in `cell`, or None."""
        return self._results.get(_key(cell, sample.id, sample_digest(sample)))

    def append(self, result: Result) -> None:
        """Keep `result`, which is on disk when this method returns. Raises EvaluationError."""
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
                f"{str(path)!r} has results of another run in line {number}: "
                "give another --out, or that run's options"
            )


def _unusable(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(f"{str(path)!r} cannot be used: {error.strerror}")
