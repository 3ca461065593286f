# SPDX-License-Identifier: Apache-2.0
"""What the commands share: how an error ends one, and how long work shows."""

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
"""The exit status of a shell's command that Ctrl-C ended."""
TERMINATED = 143
"""The same of one that SIGTERM ended."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Ends the command with one line on stderr where a HeadKVError is raised inside."""
    try:
        yield
    except HeadKVError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"headkv: error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block by SystemExit, so that a server started in it is ended as well."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_out(out: Path, *, force: bool) -> Path:
    """`out`, where a command may write: known before the work that makes what is written.

    Raises SettingsError when it is taken, or its folder is missing or cannot be written to.
    """
    if os.path.isdir(out):
        raise SettingsError(f"--out is {str(out)!r}, which is a folder: name a file")
    if os.path.lexists(out) and not force:
        raise SettingsError(f"--out is {str(out)!r}, which exists: --force writes over it")
    if not os.path.isdir(out.parent):
        raise SettingsError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise SettingsError(f"--out is {str(out)!r}, but its folder cannot be written to")
    return out


def model_name(model: str) -> str:
    """The last part of a folder or hub name, in lower case, as a name for files."""
    return Path(model).name.lower() or Path(model).resolve().name.lower() or "model"
