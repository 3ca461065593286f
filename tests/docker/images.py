# SPDX-License-Identifier: Apache-2.0
"""The images' sources, as tests read them."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cpu"]


def instructions(dockerfile: Path) -> dict[str, str]:
    """The last of each kind of instruction, which is the one that counts: {"USER": "10001"}."""
    lines = [line for line in dockerfile.read_text().splitlines() if line[:1] != "#"]
    whole = "\n".join(lines).replace("\\\n", "")
    return {name: value.strip() for name, _, value in (s.partition(" ") for s in whole.split("\n"))}


def copy_context(target: Path) -> None:
    """What `COPY .` brings into an image: what .dockerignore takes in again after leaving out all.

    Raises AssertionError when .dockerignore has a pattern of another kind.
    """
    patterns = [line for line in _lines(ROOT / ".dockerignore") if line[:1] != "#"]
    assert patterns[0] == "*" and patterns[-1] == "**/__pycache__"
    for pattern in patterns[1:-1]:
        assert pattern[0] == "!" and "*" not in pattern, pattern
        source, copy = ROOT / pattern[1:], target / pattern[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
