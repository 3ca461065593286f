# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for GPUs of both makers, without one."""

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


@pytest.mark.parametrize(
    ("target", "max_shared_memory", "max_spilled"),
    [
        ("cuda:86", 99 << 10, 2048),  # attention spills there, and is slower than it could be
        ("cuda:90", 227 << 10, 256),
        ("hip:gfx942", 64 << 10, 256),
    ],
)
def test_all_kernels_compile_and_fit(target: str, max_shared_memory: int, max_spilled: int) -> None:
    """Into the memory that a program may share (desktop GPUs have least), and into registers."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_kernels", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == launched_kernels()
    for name, _, shared_memory, spilled in lines:
        assert int(shared_memory) <= max_shared_memory, name
        assert int(spilled) <= max_spilled, name
