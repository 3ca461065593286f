# SPDX-License-Identifier: Apache-2.0
"""The virtual environment of kvpress, which needs another transformers than vLLM."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = ROOT / "requirements" / "kvpress.txt"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
STAMP: Final = "setup-stamp"


def make_environment(folder: Path, say: Callable[[str], None]) -> Path:
    """The interpreter in `folder`, made again unless it has the same pins.

    Raises SystemExit with pip's last line where a package cannot be installed.
    """
    python, stamp = folder / "bin" / "python", folder / STAMP
    fingerprint = hashlib.sha256(
        f"{sys.version} {torch_pin()} {REQUIREMENTS.read_text()}".encode()
    ).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == fingerprint:
        return python
    say(f"making {folder}")
    venv.create(folder, clear=True, with_pip=True)
    (folder / ".gitignore").write_text("*\n")
    say(f"installing {torch_pin()}")
    if _pip(python, torch_pin()) is not None:
        say(f"not in the configured package index; asking {TORCH_INDEX}")
        _check(_pip(python, "--index-url", TORCH_INDEX, torch_pin()))
    say("installing kvpress and its requirements")
    _check(_pip(python, "-r", str(REQUIREMENTS)))
    stamp.write_text(fingerprint)
    return python


def torch_pin() -> str:
    """As the engine has it, `torch==...`: the same arithmetic on both sides."""
    lines = (REQUIREMENTS.parent / "torch.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def versions(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Of the packages `names` in the environment in `folder`."""
    (packages,) = folder.glob("lib/python*/site-packages")
    found = {
        distribution.name.lower(): distribution.version
        for distribution in distributions(path=[str(packages)])
    }
    return {name: found[name] for name in names}


def _pip(python: Path, *what: str) -> str | None:
    """Install `what` and nothing that it needs. Returns the last line of the failure, if any."""
    quiet = ("-qq", "--no-input", "--disable-pip-version-check", "--no-compile", "--no-deps")
    done = subprocess.run(
        [str(python), "-m", "pip", "install", *quiet, *what], capture_output=True, text=True
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip"])[-1]


def _check(failure: str | None) -> None:
    if failure is not None:
        raise SystemExit(f"error: the environment of kvpress cannot be made: {failure}")
