# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for GPUs of both makers; none is needed for that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headkv_vllm import kernels

pytest.importorskip("triton")


def launched_kernels() -> set[str]:
    """By the source: `_kernel[grid](...)`."""
    files = Path(kernels.__path__[0]).glob("*.py")
    launch = re.compile(r"^    (_\w+)\[.+\]\(", re.M)
    return {name for file in files for name in launch.findall(file.read_text())}


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_all_kernels_compile(target: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_kernels", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == launched_kernels()
