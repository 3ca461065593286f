# SPDX-License-Identifier: Apache-2.0
"""The score file: a JSON document with one score per query head, see scores/README.md."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import ScoreFileError, explain
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.output.files import write_whole

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 * 2**20

# Lists are allowed as well as tuples.
LayerScores = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ScoredModel(BaseModel):
    """The scored model: a name for people, and the identity that is compared with others."""

    model_config = _CONFIG

    name: str = Field(min_length=1)
    identity: ModelIdentity


class Provenance(BaseModel):
    """How the scores were measured. Unknown fields, as in an imported file, are left out.

    num_accepted: the number of samples with a right answer; the scores come from these samples.
    lengths: prompt lengths of the samples, in tokens. data: a description of the samples.
    template, chat: how a sample became a prompt. answers: "forced" if the samples' answers were
        scored, "generated" if the model's were. dtype: the dtype of the model's computation.
    """

    model_config = _CONFIG

    tool_version: str = Field(min_length=1)
    seed: int | None = None
    num_samples: int | None = Field(default=None, ge=1)
    num_accepted: int | None = Field(default=None, ge=1)
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), strict=False)
    data: str | None = None
    template: str | None = None
    chat: bool | None = None
    answers: str | None = None
    dtype: str | None = None
    notes: str | None = None


class ScoreFile(BaseModel):
    """The contents of a score file. `scores` is [num_layers][num_heads], finite, not negative.

    Only the ratios between scores matter. At least one score is above zero.
    """

    model_config = _CONFIG

    schema_version: Literal[1]
    model: ScoredModel
    method: str = Field(min_length=1)
    provenance: Provenance
    scores: tuple[LayerScores, ...] = Field(strict=False)

    @property
    def values(self) -> FloatArray:
        """The scores as an array [num_layers, num_heads]."""
        return np.array(self.scores, dtype=np.float64)

    @field_validator("schema_version", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object) -> object:
        return str(value) if isinstance(value, bool) else value  # pydantic accepts True for 1

    @model_validator(mode="after")
    def _scores_have_the_models_shape(self) -> Self:
        identity = self.model.identity
        if len(self.scores) != identity.num_layers:
            raise ValueError(
                f"scores has {len(self.scores)} layers, expected num_layers {identity.num_layers}"
            )
        for layer, row in enumerate(self.scores):
            if len(row) != identity.num_heads:
                raise ValueError(
                    f"scores[{layer}] has {len(row)} heads, expected num_heads {identity.num_heads}"
                )
        if not any(any(row) for row in self.scores):
            raise ValueError("all scores are zero, expected at least one above zero")
        return self


def read_score_file(path: Path) -> ScoreFile:
    """Read and check the score file at `path`.

    Raises ScoreFileError, one line with the file and the expected content, when the file is
    missing, larger than MAX_FILE_BYTES, not JSON, or does not match the schema and its version.
    """
    try:
        return ScoreFile.model_validate_json(_read_bytes(path))
    except ValidationError as error:
        raise _unusable(path, explain(error, ScoreFile, first_key="schema_version")) from None


def write_score_file(path: Path, file: ScoreFile) -> None:
    """Write `file` to `path`, completely or not at all. The same contents give the same bytes.

    Raises ScoreFileError when the file cannot be written.
    """
    try:
        write_whole(path, _to_json(file).encode())
    except OSError as error:
        raise ScoreFileError(
            f"score file {str(path)!r} cannot be written: {error.strerror}"
        ) from None


def check_fits(file: ScoreFile, identity: ModelIdentity, path: Path) -> None:
    """Raise ScoreFileError unless `file`, read from `path`, fits the model `identity`.

    A file fits when its architecture and its sizes are those of the model.
    """
    made_for = file.model.identity
    for field in made_for.differences(identity):
        found, expected = getattr(made_for, field), getattr(identity, field)
        raise _unusable(
            path, f"it is for {file.model.name} with {field} {found}, this model has {expected}"
        )


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise _unusable(path, "it is not a regular file")
        if size > MAX_FILE_BYTES:
            raise _unusable(path, f"it has {size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise _unusable(
            path, f"it cannot be read ({error.strerror}), expected a JSON file"
        ) from None


def _unusable(path: Path, reason: str) -> ScoreFileError:
    return ScoreFileError(f"score file {str(path)!r} cannot be used: {reason}")


def _to_json(file: ScoreFile) -> str:
    document = file.model_dump(mode="json", exclude_none=True)
    rows = ",\n    ".join(json.dumps(row) for row in document.pop("scores"))
    head = json.dumps(document, indent=2).removesuffix("\n}")
    return f'{head},\n  "scores": [\n    {rows}\n  ]\n}}\n'
