# SPDX-License-Identifier: Apache-2.0
"""Files that grow by a line at a time, and outlive a write that was cut short."""

import os
from collections.abc import Sequence
from pathlib import Path


def complete_lines(path: Path) -> list[bytes]:
    """The lines of the file at `path` that were written whole; none without a file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def drop_cut_line(path: Path, lines: Sequence[bytes]) -> None:
    """Cut off what the file at `path` holds beyond `lines`, its complete ones."""
    size = sum(map(len, lines))
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def append_line(path: Path, line: bytes) -> None:
    """Add `line`, which is on disk when this returns."""
    with path.open("ab") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
