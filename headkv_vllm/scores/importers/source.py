# SPDX-License-Identifier: Apache-2.0
"""The file of another program that scores are imported from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from headkv_vllm.errors import ScoreFileError

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
