# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' command lines have in common."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that it runs.")]
Out = Annotated[Path, typer.Option(help="The folder of the numbers, the page and the pictures.")]


def command_line(name: str) -> str:
    """What was typed to run the benchmark `name`."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
