# SPDX-License-Identifier: Apache-2.0
"""Keeps the results of finished samples on disk, so that an interrupted run can continue."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import ScoringError
from headkv_vllm.output.files import append_line, complete_lines, drop_cut_line

LayerScores = Annotated[tuple[float, ...], Field(strict=False)]


class SampleResult(BaseModel):
    """The result of one sample.

    share: the share of the expected answer that the model gives, 0 to 1.
    said: the model's answer. scores: [num_layers][num_heads], of either sign.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    index: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    said: str
    scores: tuple[LayerScores, ...] = Field(strict=False)

    @property
    def values(self) -> FloatArray:
        """The scores as an array [num_layers, num_heads]."""
        return np.array(self.scores, dtype=np.float64)


@dataclass(frozen=True)
class Journal:
    """A file of JSON lines beside the score file: a header that describes the run, then results.

    A result is on disk before the next sample starts. Floats are written and read without loss, so
    a resumed run writes the same score file as a run without interruption.
    """

    path: Path
    results: tuple[SampleResult, ...] = ()

    @staticmethod
    def beside(score_file: Path) -> Path:
        """The path of the journal for the run that writes `score_file`."""
        return score_file.with_name(f"{score_file.name}.partial.jsonl")

    @classmethod
    def resume(cls, path: Path, run: Mapping[str, Any]) -> Self:
        """The journal at `path` of the run that `run` describes, or a new one.

        A last line that is incomplete is dropped. Raises ScoringError when the journal belongs to
        another run, is damaged, or cannot be read or written.
        """
        header = _line({"run": run})
        try:
            lines = complete_lines(path)
            results = _read(path, lines, header) if lines else ()
            drop_cut_line(path, lines)
            if not lines:
                append_line(path, header)
        except OSError as error:
            raise _unwritable(path, error) from None
        return cls(path, results)

    def append(self, result: SampleResult) -> Self:
        """This journal with `result`, which is on disk when this method returns.

        Raises ScoringError when it cannot be written. Earlier results stay readable.
        """
        try:
            append_line(self.path, _line(result.model_dump(mode="json")))
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return replace(self, results=(*self.results, result))

    def remove(self) -> None:
        """Delete the file, if there is one. Raises ScoringError when it cannot be deleted."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ScoringError(
                f"partial results {str(self.path)!r} cannot be deleted: {error.strerror}"
            ) from None

    def check_integrity(self) -> None:
        """Assert that the results are those of the first samples, in order."""
        assert [result.index for result in self.results] == list(range(len(self.results)))


def _read(path: Path, lines: list[bytes], header: bytes) -> tuple[SampleResult, ...]:
    if lines[0] != header:
        raise ScoringError(
            f"{str(path)!r} holds partial results of another run (another model, other samples or "
            "options): repeat the command of that run, or delete them with --restart"
        )
    try:
        results = tuple(map(SampleResult.model_validate_json, lines[1:]))
    except ValidationError:
        raise _damaged(path) from None
    if [result.index for result in results] != list(range(len(results))):
        raise _damaged(path)
    return results


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _damaged(path: Path) -> ScoringError:
    return ScoringError(f"{str(path)!r} is damaged and cannot be resumed: delete it with --restart")


def _unwritable(path: Path, error: OSError) -> ScoringError:
    return ScoringError(
        f"partial results cannot be kept in {str(path)!r}: {error.strerror}; earlier results stay, "
        "and the same command continues from them"
    )
