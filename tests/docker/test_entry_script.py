# SPDX-License-Identifier: Apache-2.0
"""What Dockerfile.cpu does, in a folder in place of an image: install, start, answer, stop."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from headkv_vllm.needle.tasks import generate_samples
from headkv_vllm.server.process import ServerProcess
from tests.docker.images import copy_context
from tests.engine.helpers.server import START_TIMEOUT, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

PASSED_ON = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS")
# Nobody may read all, because the interpreter may lie in root's home, and write nothing more.
AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@pytest.fixture(scope="module")
def opt() -> Iterator[Path]:
    """/opt/headkv of an image, that all may read; gone at the end, for it takes gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy_context(Path(folder) / "headkv")
        setup = [Path(folder) / "headkv" / "scripts" / "setup", "--no-dev"]
        ended = subprocess.run(setup, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        yield Path(folder) / "headkv"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that an ordinary user may write to."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def ordinary_user() -> list[str]:
    """What makes a command run as nobody, where this is root and root may grant that."""
    if os.geteuid() or subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode:
        return []
    return AS_NOBODY


class Container(ServerProcess):
    """The entry script with the environment of an image, and no model named."""

    def __init__(self, opt: Path, home: Path) -> None:
        passed_on = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        environment = [f"PATH={opt}/.venv/bin:/usr/bin:/bin", f"HOME={home}", *passed_on]
        entry_script = str(opt / "docker" / "entrypoint.sh")
        self.command = ["env", "-i", "-C", str(home), *environment, *ordinary_user(), entry_script]
        super().__init__([], home / "server.log")


def test_an_image_serves_answers_and_stops(opt: Path, home: Path) -> None:
    (sample,) = generate_samples("single", 1024, 1, seed=5)
    with Container(opt, home) as server:
        server.wait_until_healthy(START_TIMEOUT)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120)
        completion = client.completions.create(
            model="needle", prompt=sample.prompt, temperature=0, max_tokens=32
        )
        assert completion.choices[0].text.split() == sample.answer.split()
        config = httpx.get(f"{server.url}/v1/headkv/config").raise_for_status().json()
        assert config["settings"]["budget"] == 128
        assert server.stop() == 0
        wait_for(lambda: not server.has_processes())
