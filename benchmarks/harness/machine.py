# SPDX-License-Identifier: Apache-2.0
"""Describes the machine of a benchmark."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine() -> dict[str, str]:
    """The machine, and the versions of the installed packages."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        **_gpu(),
        **_versions(),
        "commit": _commit(),
    }


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver}


def _versions() -> dict[str, str]:
    """Versions of the installed packages. vLLM is optional for kernels."""
    installed = {}
    for package in ("torch", "triton", "vllm", "headkv-vllm"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    """The commit of the checkout, with a note if the package has changes."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return "unknown"
    head = _git(folder, "rev-parse", "--short", "HEAD")
    is_changed = _git(folder, "status", "--porcelain", "headkv_vllm")
    return f"{head} and changes" if is_changed else head


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
