# SPDX-License-Identifier: Apache-2.0
"""The samples that are done, kept on disk, so that an interrupted run goes on where it stopped."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headkv_vllm.errors import ScoringError
from headkv_vllm.output.json_lines import append_line, complete_lines, drop_cut_line

Row = Annotated[tuple[float, ...], Field(strict=False)]


class SampleResult(BaseModel):
    """What one sample gave.

    share: of the expected answer, how much the model gives, 0 to 1.
    said: the model's own words. scores: [num_layers][num_heads], of either sign.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    index: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    said: str
    scores: tuple[Row, ...] = Field(strict=False)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The scores as an array [num_layers, num_heads]."""
        return np.array(self.scores, dtype=np.float64)


@dataclass(frozen=True)
class Journal:
    """A file of JSON lines beside the score file: first what the run is, then one result a line.

    A result is on disk before the next sample starts. Floats are written so that they are read back
    exactly, so a run that is resumed writes the same score file as one that was not interrupted.
    """

    path: Path
    results: tuple[SampleResult, ...] = ()

    @staticmethod
    def beside(score_file: Path) -> Path:
        """Where the journal of the run that writes `score_file` lies."""
        return score_file.with_name(f"{score_file.name}.partial.jsonl")

    @classmethod
    def resume(cls, path: Path, run: Mapping[str, Any]) -> Self:
        """The journal at `path` of the run that `run` describes; a new one if there is none.

        A last line that was cut short is dropped. Raises ScoringError when the journal is of
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
        """This journal with `result`, which is on disk when this returns.

        Raises ScoringError when it cannot be written; what was there before stays readable.
        """
        try:
            append_line(self.path, _line(result.model_dump(mode="json")))
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return replace(self, results=(*self.results, result))

    def remove(self) -> None:
        """Delete the file, if there is one. Raises ScoringError when that is not possible."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ScoringError(
                f"partial results {str(self.path)!r} cannot be deleted: {error.strerror}"
            ) from None

    def check_integrity(self) -> None:
        """The results are those of the first samples, in order."""
        assert [result.index for result in self.results] == list(range(len(self.results)))


def _read(path: Path, lines: list[bytes], header: bytes) -> tuple[SampleResult, ...]:
    if lines[0] != header:
        raise ScoringError(
            f"{str(path)!r} holds partial results of another run (another model, other samples or "
            "options): repeat that run's command, or drop them with --restart"
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
    return ScoringError(f"{str(path)!r} is damaged and cannot be resumed: drop it with --restart")


def _unwritable(path: Path, error: OSError) -> ScoringError:
    return ScoringError(
        f"partial results cannot be kept in {str(path)!r}: {error.strerror}; those that are there "
        "stay, and the same command goes on from them"
    )
