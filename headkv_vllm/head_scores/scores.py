# SPDX-License-Identifier: Apache-2.0
"""The head scores that a model is served with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headkv_vllm.config import Settings
from headkv_vllm.head_scores.file import ScoreFile, check_fits, read_score_file
from headkv_vllm.head_scores.folding import fold_query_heads
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.head_scores.library import bundled_alike, find_bundled, find_score_file


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One score per KV head, and where it comes from.

    values: [num_layers, num_kv_heads] of the whole model, read-only, not negative; only their
        ratios matter.
    source: one line for people, without the path. path, file: the score file, if one was used.
    uniform: every head has the same score.
    warning: one line that the caller logs, when the scores may not be what the user wants.
    """

    values: npt.NDArray[np.float64]
    source: str
    path: Path | None = None
    file: ScoreFile | None = None
    uniform: bool = False
    warning: str | None = None

    def __post_init__(self) -> None:
        self.values.flags.writeable = False


def resolve(settings: Settings, identity: ModelIdentity) -> HeadScores:
    """The scores that `settings.scores` asks for, folded to the KV heads of `identity`.

    "auto" is the bundled file for this model, or uniform scores and a warning without one. A file
    that is asked for by its path, or by its name if it is bundled, may also be of another model
    with the same architecture and sizes: then there is a warning.
    Raises ScoreFileError when there is no such file, it cannot be used, or its heads are others.
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
    """Whether the settings ask for scores that differ from head to head."""
    if settings.scores == "auto":
        return settings.uses_scores
    return settings.scores != "uniform"


def load(path: Path, settings: Settings, identity: ModelIdentity) -> HeadScores:
    """The scores in the file at `path`. Raises ScoreFileError, see `resolve`."""
    file = read_score_file(path)
    check_fits(file, identity, path)
    # Scaled first, so that no fold of finite scores overflows.
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
    """The warning that there are no scores for `identity`, with the bundled ones that might do."""
    reason = (
        f"no head scores are bundled for this {identity.architecture} with "
        f"{identity.num_layers} layers (fingerprint {identity.fingerprint[:12]}), so all heads get "
        "the same budget: "
    )
    alike = bundled_alike(identity)
    if not alike:
        return f"{reason}give scores with {_option('FILE.json')}; `headkv score MODEL` makes them"
    return (
        f"{reason}if it is a quantised or tuned copy of {' or of '.join(alike)}, which has as many "
        f"heads, say so with {_option(alike[0])}"
    )


def _of_another(file: ScoreFile, path: Path) -> str:
    return (
        f"the head scores in {path.name} are of {file.model.name}, whose weights have other names "
        "or shapes than this model's; they are used as set, and fit if it is a quantised or tuned "
        "copy of that model"
    )


def _option(scores: str) -> str:
    return f'--additional-config \'{{"headkv": {{"scores": "{scores}"}}}}\''
