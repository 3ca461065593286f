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


@pytest.mark.parametrize(
    ("target", "most_shared_memory"),
    [("cuda:86", 99 << 10), ("cuda:90", 227 << 10), ("hip:gfx942", 64 << 10)],
)
def test_all_kernels_compile_and_fit(target: str, most_shared_memory: int) -> None:
    """Into what a program may share: of NVIDIA's GPUs those for desktops have least."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_kernels", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == launched_kernels()
    assert max(int(shared_memory) for *_, shared_memory in lines) <= most_shared_memory
