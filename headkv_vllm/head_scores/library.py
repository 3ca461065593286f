# SPDX-License-Identifier: Apache-2.0
"""The score files that come with this package."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from headkv_vllm.errors import ScoreFileError, shown
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.resources import scores_dir

logger = logging.getLogger(__name__)


def find_bundled(identity: ModelIdentity, folder: Path | None = None) -> Path | None:
    """The first score file, by name, with the fingerprint of `identity`; None without one.

    Searches `folder`, by default the bundled score files. A file that cannot be used is passed
    over with a warning: it must not keep other models from starting.
    """
    identities = _identities(folder or scores_dir())
    return next(
        (path for path, made_for in identities if made_for.fingerprint == identity.fingerprint),
        None,
    )


def bundled_alike(identity: ModelIdentity, folder: Path | None = None) -> tuple[str, ...]:
    """The names of the score files of models with the architecture and the sizes of `identity`.

    A quantised copy of such a model, or one that was tuned and has other weights, has them too.
    """
    identities = _identities(folder or scores_dir())
    return tuple(path.stem for path, made_for in identities if not made_for.differences(identity))


def _identities(folder: Path) -> Iterator[tuple[Path, ModelIdentity]]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, read_score_file(path).model.identity
        except ScoreFileError as error:
            logger.warning("passed over: %s", error)


def find_score_file(text: str) -> Path:
    """The score file that a user means by `text`: a file's path, or else a bundled file's name.

    Raises ScoreFileError when it is neither.
    """
    path = os.path.expanduser(text)
    if os.path.isfile(path):
        return Path(path)
    bundled = {path.stem: path for path in sorted(scores_dir().glob("*.json"))}
    if text in bundled:
        return bundled[text]
    raise ScoreFileError(
        f"no score file {shown(text)}: expected the path of a file, or the name of a bundled one: "
        f"{', '.join(bundled)}"
    )
