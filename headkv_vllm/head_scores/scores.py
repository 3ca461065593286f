# SPDX-License-Identifier: Apache-2.0
"""The head scores of a served model: finds them, folds them to KV heads, describes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from headkv_vllm.arrays import FloatArray
from headkv_vllm.config import Settings
from headkv_vllm.head_scores.file import Provenance, ScoreFile, check_fits, read_score_file
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.head_scores.library import bundled_alike, find_bundled, find_score_file

Fold = Literal["mean", "max", "sum"]


def fold_query_heads(scores: FloatArray, num_kv_heads: int, how: Fold) -> FloatArray:
    """Scores [num_layers, num_heads] of query heads, folded to [num_layers, num_kv_heads].

    Query heads i*G .. (i+1)*G - 1 share KV head i, with G = num_heads // num_kv_heads
    (grouped-query attention, arXiv 2305.13245).
    """
    num_layers, num_heads = scores.shape
    groups = scores.reshape(num_layers, num_kv_heads, num_heads // num_kv_heads)
    folded: dict[Fold, FloatArray] = {
        "mean": groups.mean(axis=2),
        "max": groups.max(axis=2),
        "sum": groups.sum(axis=2),
    }
    return folded[how]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One score per KV head, and where it comes from.

    values: [num_layers, num_kv_heads] of the whole model, read-only, not negative; only their
        ratios matter.
    source: one line for people, without the path. path, file: the score file, if one was used.
    uniform: every head has the same score.
    warning: one line for the log, if the scores may not be what the user wants.
    """

    values: FloatArray
    source: str
    path: Path | None = None
    file: ScoreFile | None = None
    uniform: bool = False
    warning: str | None = None

    def __post_init__(self) -> None:
        self.values.flags.writeable = False


def resolve(settings: Settings, identity: ModelIdentity) -> HeadScores:
    """The scores that `settings.scores` selects, folded to the KV heads of `identity`.

    "auto" selects the bundled file for this model, or uniform scores and a warning if there is
    none. A path, or the name of a bundled file, may also select the scores of another model with
    the same architecture and sizes; then there is a warning. Raises ScoreFileError when the file
    does not exist, cannot be used, or has other heads.
    """
    if not needs_file(settings):
        return uniform_scores(identity, "uniform, as set")
    if settings.scores != "auto":
        return load(find_score_file(settings.scores), settings, identity)
    bundled = find_bundled(identity)
    if bundled is not None:
        return load(bundled, settings, identity)
    return uniform_scores(
        identity, "uniform: none bundled for this model", none_bundled_for(identity)
    )


def needs_file(settings: Settings) -> bool:
    """Whether the settings select scores that can differ between heads."""
    if settings.scores == "auto":
        return settings.uses_scores
    return settings.scores != "uniform"


def load(path: Path, settings: Settings, identity: ModelIdentity) -> HeadScores:
    """The scores in the file at `path`. Raises ScoreFileError, see `resolve`."""
    file = read_score_file(path)
    check_fits(file, identity, path)
    # The scores are scaled first, so that folding finite scores cannot overflow.
    scaled = file.values / file.values.max()
    values = fold_query_heads(scaled, identity.num_kv_heads, settings.gqa_fold)
    source = f"{file.method} scores of {file.model.name}, {path.name}"
    uniform = bool((values == values[0, 0]).all())
    of_this_model = file.model.identity.fingerprint == identity.fingerprint
    warning = None if of_this_model else _of_another(file, path)
    return HeadScores(values, source, path, file, uniform, warning)


def uniform_scores(identity: ModelIdentity, source: str, warning: str | None = None) -> HeadScores:
    """The same score for every KV head of `identity`."""
    values = np.ones((identity.num_layers, identity.num_kv_heads))
    return HeadScores(values, source, uniform=True, warning=warning)


def none_bundled_for(identity: ModelIdentity) -> str:
    """A warning that there are no scores for `identity`, with bundled scores that may fit."""
    reason = (
        f"no head scores are bundled for this {identity.architecture} with "
        f"{identity.num_layers} layers (fingerprint {identity.fingerprint[:12]}), so all heads get "
        "the same budget: "
    )
    alike = bundled_alike(identity)
    if not alike:
        return f"{reason}give scores with {_option('FILE.json')}; `headkv score MODEL` makes them"
    return (
        f"{reason}if the model is a quantised or tuned copy of {' or of '.join(alike)}, use those "
        f"scores with {_option(alike[0])}"
    )


def _of_another(file: ScoreFile, path: Path) -> str:
    return (
        f"the head scores in {path.name} are for {file.model.name}, whose weights have other names "
        "or shapes than this model's. They are used as set. They fit if this model is a quantised "
        "or tuned copy of that model"
    )


def _option(scores: str) -> str:
    return f'--additional-config \'{{"headkv": {{"scores": "{scores}"}}}}\''


_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoreOrigin(BaseModel):
    """The score file of served scores: its name without the folder, and its description.

    model: the name of the scored model. method: the scoring method.
    """

    model_config = _CONFIG

    file: str
    model: str
    method: str
    provenance: Provenance


class ServedScores(BaseModel):
    """One score per KV head and their origin, as a server shows them and sends them to workers.

    values: [num_layers][num_kv_heads] of the whole model; only their ratios matter.
    source: one line for people. uniform: every head has the same score.
    origin: the description of the score file; None if no file was used.
    """

    model_config = _CONFIG

    values: tuple[tuple[float, ...], ...]
    source: str
    uniform: bool
    origin: ScoreOrigin | None

    @classmethod
    def from_scores(cls, scores: HeadScores) -> Self:
        """`scores` without the paths of this machine."""
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
