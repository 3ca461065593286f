# SPDX-License-Identifier: Apache-2.0
"""Files that stay readable when a write is cut short: written whole, or line by line."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`. A reader sees the old file or the new one, never a part of it.

    Raises OSError.
    """
    replace_whole(path, lambda partial: _write_to_disk(partial, data))


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, which then takes the place of `path` in one step.

    Raises OSError, and what `write` raises; the file at `path` then stays as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def complete_lines(path: Path) -> list[bytes]:
    """The lines of the file at `path` that end with a newline; none if there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def drop_cut_line(path: Path, lines: Sequence[bytes]) -> None:
    """Cut off what the file at `path` holds after `lines`, its complete lines."""
    size = sum(map(len, lines))
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def append_line(path: Path, line: bytes) -> None:
    """Add `line` to the file. The line is on disk when this returns."""
    _write_to_disk(path, line, "ab")


def _write_to_disk(path: Path, data: bytes, mode: str = "wb") -> None:
    with path.open(mode) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
