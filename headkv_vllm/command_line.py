# SPDX-License-Identifier: Apache-2.0
"""What the commands share: how an error ends one, and how long work shows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from headkv_vllm.errors import HeadKVError, SettingsError

INTERRUPTED = 130
"""The exit status of a shell's command that Ctrl-C ended."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Ends the command with one line on stderr where a HeadKVError is raised inside."""
    try:
        yield
    except HeadKVError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"headkv: error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


def check_out(out: Path, *, force: bool) -> Path:
    """`out`, where a command may write. Raises SettingsError when it is taken or has no folder."""
    if os.path.lexists(out) and not force:
        raise SettingsError(f"--out is {str(out)!r}, which exists: --force writes over it")
    if not out.parent.is_dir():
        raise SettingsError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    return out


def model_name(model: str) -> str:
    """The last part of a folder or hub name, in lower case, as a name for files."""
    return Path(model).name.lower() or Path(model).resolve().name.lower() or "model"
