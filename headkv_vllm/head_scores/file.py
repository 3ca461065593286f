# SPDX-License-Identifier: Apache-2.0
"""The score file: a JSON document with one score per query head, see scores/README.md."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from headkv_vllm.errors import ScoreFileError, shown
from headkv_vllm.head_scores.identity import ModelIdentity

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 * 2**20

# Not strict about the sequence's type, so that lists do as well as tuples.
Row = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ScoredModel(BaseModel):
    """The model that was scored: a name for people, and the identity that is compared."""

    model_config = _CONFIG

    name: str = Field(min_length=1)
    identity: ModelIdentity


class Provenance(BaseModel):
    """How the scores came about; what is unknown, as in an imported file, is left out.

    num_accepted: of the samples, those whose answer was right and that the scores are from.
    lengths: prompt lengths of the samples, in tokens. data: what the samples are.
    template, chat: how a sample became a prompt. answers: whose the scored ones were, the samples'
        ("forced") or the model's ("generated"). dtype: what the model computed in.
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
    scores: tuple[Row, ...] = Field(strict=False)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The scores as an array [num_layers, num_heads]."""
        return np.array(self.scores, dtype=np.float64)

    @field_validator("schema_version", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object) -> object:
        return str(value) if isinstance(value, bool) else value  # True would do for 1

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

    Raises ScoreFileError, one line naming the file and what was expected, when it is missing,
    larger than MAX_FILE_BYTES, no JSON, of another schema version or against the schema.
    """
    try:
        return ScoreFile.model_validate_json(_read_bytes(path))
    except ValidationError as error:
        raise _unusable(path, _explain(error)) from None


def write_score_file(path: Path, file: ScoreFile) -> None:
    """Write `file` to `path` at once or not at all; the same contents give the same bytes.

    Raises ScoreFileError when the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            stream.write(_to_json(file).encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ScoreFileError(
            f"score file {str(path)!r} cannot be written: {error.strerror}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def check_fits(file: ScoreFile, identity: ModelIdentity, path: Path) -> None:
    """Raise ScoreFileError unless the model `identity` has the heads that `file` has scores of.

    file: read from `path`. That is so when architecture and sizes are the same.
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
            raise _unusable(path, "it is no regular file")
        if size > MAX_FILE_BYTES:
            raise _unusable(path, f"it has {size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror}), expected a JSON file") from None


def _explain(error: ValidationError) -> str:
    first = min(error.errors(), key=_rank)
    where = _location(first["loc"])
    match first["type"]:
        case "value_error":
            return str(first["ctx"]["error"])
        case "json_invalid":
            return f"it is not valid JSON, or cut short: {first['ctx']['error']}"
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return f"{where} is not a key of schema version {SCHEMA_VERSION}"
    expected = first["msg"].replace("Input should be ", "expected ")
    return f"{where or 'the document'} is {shown(first['input'])}, {expected}"


def _rank(found: ErrorDetails) -> tuple[bool, bool]:
    """Another version explains everything else, and an unknown key a missing one."""
    return found["loc"] != ("schema_version",), found["type"] != "extra_forbidden"


def _location(parts: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _unusable(path: Path, reason: str) -> ScoreFileError:
    return ScoreFileError(f"score file {str(path)!r} cannot be used: {reason}")


def _to_json(file: ScoreFile) -> str:
    document = file.model_dump(mode="json", exclude_none=True)
    rows = ",\n    ".join(json.dumps(row) for row in document.pop("scores"))
    head = json.dumps(document, indent=2).removesuffix("\n}")
    return f'{head},\n  "scores": [\n    {rows}\n  ]\n}}\n'
