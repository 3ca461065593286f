# SPDX-License-Identifier: Apache-2.0
"""Whose scores a model is served with, found without loading it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.needle import checkpoint_path

IDENTIFY = """
import json, sys
from types import SimpleNamespace
from transformers import AutoConfig
from headkv_vllm.engine.settings import identify_model
config = AutoConfig.from_pretrained(sys.argv[1])
model = SimpleNamespace(model="someone/needle", revision=None, hf_config=config)
print(identify_model(model).model_dump_json())
"""


class Hub(SimpleHTTPRequestHandler):
    """Serves one repository's files at the addresses of a model hub, byte ranges included."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        file = checkpoint_path() / self.path.rsplit("/", 1)[-1]
        if not self.path.startswith("/someone/needle/resolve/") or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            status, content = 206, content[int(first) : int(last) + 1]
        self.send_response(status)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"needle"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def identify_from(endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    environment["HF_HUB_OFFLINE"] = "0"
    return subprocess.run(
        [sys.executable, "-c", IDENTIFY, str(checkpoint_path())],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_our_error(tmp_path: Path) -> None:
    """With `scores: auto` it is a warning, and all heads get the same budget."""
    error = identify_from("http://127.0.0.1:9", tmp_path).stderr.splitlines()[-1]
    assert "ScoreFileError: the weights of someone/needle cannot be identified: " in error


@pytest.mark.slow
def test_a_model_of_the_hub_is_identified_before_it_is_downloaded(hub: str, tmp_path: Path) -> None:
    found = identify_from(hub, tmp_path)
    assert found.returncode == 0, found.stderr
    identity = json.loads(found.stdout.splitlines()[-1])
    assert identity == identify_checkpoint(checkpoint_path()).model_dump()
    assert not list(tmp_path.rglob("*.safetensors")), "it must read headers only"
