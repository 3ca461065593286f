# SPDX-License-Identifier: Apache-2.0
"""A file of another program, and the checked head scores that an importer reads from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.identity import ModelIdentity

MAX_SOURCE_BYTES = 256 * 2**20
"""Enough for thousands of samples of each head of the largest models."""


@dataclass(frozen=True)
class SourceFile:
    """A file's path and its bytes."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def text(self) -> str:
        """The contents as text. Raises ScoreFileError when they are not UTF-8."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.unusable(f"byte {error.start} is not UTF-8, expected text") from None

    def unusable(self, reason: str) -> ScoreFileError:
        return not_imported(self.path, reason)


def read_source(path: Path) -> SourceFile:
    """The file at `path`. Raises ScoreFileError when it cannot be read or is too large."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise not_imported(path, "it is not a regular file")
        if size > MAX_SOURCE_BYTES:
            raise not_imported(path, f"it has {size} bytes, expected at most {MAX_SOURCE_BYTES}")
        return SourceFile(path, path.read_bytes())
    except OSError as error:
        raise not_imported(path, f"it cannot be read ({error.strerror})") from None


def not_imported(path: Path, reason: str) -> ScoreFileError:
    """The error for a file that cannot be imported."""
    return ScoreFileError(f"{str(path)!r} cannot be imported: {reason}")


@dataclass(frozen=True, eq=False)
class ImportedScores:
    """Scores of another program. num_samples: the number of its samples, if known.

    scores: [num_layers, num_heads], one per query head, finite, not negative, at least one above
        zero. Raises ScoreFileError when they are not.
    """

    scores: FloatArray
    source: SourceFile
    num_samples: int | None = None

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.scores) | (self.scores < 0)
        if bad.any():
            layer, head = np.argwhere(bad)[0]
            raise self.source.unusable(
                f"layer {layer}, query head {head} has the score {self.scores[layer, head]}, "
                "expected a finite number of at least 0"
            )
        if not self.scores.any():
            raise self.source.unusable("all scores are zero, expected at least one above zero")


def spread_to_query_heads(values: FloatArray, identity: ModelIdentity) -> FloatArray:
    """Gives every query head the value of its KV head: [num_layers, num_heads].

    values: [num_layers, num_kv_heads or num_heads]. `fold_query_heads` with "mean" or "max" gives
    the values of the KV heads again, and with "sum" a multiple of them.
    """
    return np.repeat(values, identity.num_heads // values.shape[1], axis=1)
