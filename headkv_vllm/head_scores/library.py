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
    """The first score file, by name, with the fingerprint of `identity`, or None.

    Searches `folder`, by default the bundled score files. An unusable file is skipped with a
    warning, so that other models can start.
    """
    identities = _identities(folder or scores_dir())
    return next(
        (path for path, made_for in identities if made_for.fingerprint == identity.fingerprint),
        None,
    )


def bundled_alike(identity: ModelIdentity, folder: Path | None = None) -> tuple[str, ...]:
    """The names of the score files for models with the architecture and sizes of `identity`.

    A quantised or tuned copy of such a model has the same architecture and sizes.
    """
    identities = _identities(folder or scores_dir())
    return tuple(path.stem for path, made_for in identities if not made_for.differences(identity))


def _identities(folder: Path) -> Iterator[tuple[Path, ModelIdentity]]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, read_score_file(path).model.identity
        except ScoreFileError as error:
            logger.warning("skipped: %s", error)


def find_score_file(text: str) -> Path:
    """The score file that `text` names: the path of a file, or the name of a bundled file.

    Raises ScoreFileError when there is no such file.
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
