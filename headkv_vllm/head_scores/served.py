# SPDX-License-Identifier: Apache-2.0
"""The head scores of a running server: what travels to its processes, and what it shows."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from headkv_vllm.head_scores.file import Provenance, ScoreFile
from headkv_vllm.head_scores.scores import HeadScores

_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoreOrigin(BaseModel):
    """The score file behind served scores: its name without the folder, and what it says.

    model: the name of the model that was scored. method: how it was.
    """

    model_config = _CONFIG

    file: str
    model: str
    method: str
    provenance: Provenance


class ServedScores(BaseModel):
    """One score per KV head, and where it comes from.

    values: [num_layers][num_kv_heads] of the whole model; only their ratios matter.
    source: one line for people. uniform: every head has the same score.
    origin: what the score file says of itself; None where no file was used.
    """

    model_config = _CONFIG

    values: tuple[tuple[float, ...], ...]
    source: str
    uniform: bool
    origin: ScoreOrigin | None

    @classmethod
    def of(cls, scores: HeadScores) -> Self:
        """What of `scores` may leave the process: no path on this machine."""
        return cls(
            values=tuple(tuple(row) for row in scores.values.tolist()),
            source=scores.source,
            uniform=scores.uniform,
            origin=_origin(scores.file, scores),
        )


def _origin(file: ScoreFile | None, scores: HeadScores) -> ScoreOrigin | None:
    if file is None or scores.path is None:
        return None
    return ScoreOrigin(
        file=scores.path.name,
        model=file.model.name,
        method=file.method,
        provenance=file.provenance,
    )
