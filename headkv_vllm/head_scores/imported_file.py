# SPDX-License-Identifier: Apache-2.0
"""A file of another program, and the head scores that an importer reads from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.identity import ModelIdentity

FloatArray = npt.NDArray[np.float64]


MAX_SOURCE_BYTES = 256 * 2**20
"""Room for thousands of samples of every head of the largest models."""


@dataclass(frozen=True)
class Source:
    """A file's path and its bytes."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def text(self) -> str:
        """The contents as UTF-8. Raises ScoreFileError when they are none."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.unusable(f"byte {error.start} is no UTF-8, expected a text file") from None

    def unusable(self, reason: str) -> ScoreFileError:
        return not_imported(self.path, reason)


def read_source(path: Path) -> Source:
    """The file at `path`. Raises ScoreFileError when it cannot be read or is too large."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise not_imported(path, "it is no regular file")
        if size > MAX_SOURCE_BYTES:
            raise not_imported(path, f"it has {size} bytes, expected at most {MAX_SOURCE_BYTES}")
        return Source(path, path.read_bytes())
    except OSError as error:
        raise not_imported(path, f"it cannot be read ({error.strerror})") from None


def not_imported(path: Path, reason: str) -> ScoreFileError:
    """The error for a file that cannot be imported."""
    return ScoreFileError(f"{str(path)!r} cannot be imported: {reason}")


@dataclass(frozen=True, eq=False)
class Imported:
    """Checked scores [num_layers, num_heads], the file that they are from, its samples if known.

    scores: one per query head, finite, not negative, at least one above zero.
    Raises ScoreFileError when they are not.
    """

    scores: FloatArray
    source: Source
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
    """Every query head gets the value of its KV head: [num_layers, num_kv_heads or num_heads].

    `fold_query_heads` gives the KV heads' values back by mean and by max, and by sum a multiple.
    """
    return np.repeat(values, identity.num_heads // values.shape[1], axis=1)
