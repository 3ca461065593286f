# SPDX-License-Identifier: Apache-2.0
"""Helpers of the commands: errors in one line, SIGTERM, output paths and model names."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console

from headkv_vllm.errors import HeadKVError, SettingsError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in a shell."""
TERMINATED = 143
"""The exit status after SIGTERM, as in a shell."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Ends the command with one line on stderr if the block raises a HeadKVError."""
    try:
        yield
    except HeadKVError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"headkv: error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that servers started in the block stop too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_out(out: Path, *, force: bool) -> Path:
    """Check before the work that a command can write `out`. Returns `out`.

    Raises SettingsError when the file exists, or its folder does not exist or is not writable.
    """
    if os.path.isdir(out):
        raise SettingsError(f"--out is {str(out)!r}, which is a folder: name a file")
    if os.path.lexists(out) and not force:
        raise SettingsError(f"--out is {str(out)!r}, which exists: --force overwrites it")
    if not os.path.isdir(out.parent):
        raise SettingsError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise SettingsError(f"--out is {str(out)!r}, but its folder cannot be written to")
    return out


def model_name(model: str) -> str:
    """A name for files: the last part of a folder or hub name, in lower case."""
    return Path(model).name.lower() or Path(model).resolve().name.lower() or "model"
