# SPDX-License-Identifier: Apache-2.0
"""What ends a server and what does not: vLLM's own behaviour, with nothing left over by us."""

import ast
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAIError

import headkv_vllm
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from headkv_vllm.resources import scores_dir
from tests.engine.helpers.server import Server, wait_for

PATIENCE = 120.0
WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "today")}
PROMPT = next(iter(generate_samples("multi-query", 1500, 1, seed=3))).prompt


def arguments(scores: Path) -> list[str]:
    settings = {"headkv": {"budget": 128, "scores": str(scores)}}
    return [
        *("--attention-backend", "headkv", "--additional-config", json.dumps(settings)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "4608"),
    ]


def ask(server: Server, max_tokens: int = 24) -> str:
    completion = server.client.completions.create(
        model=server.model,
        prompt=PROMPT,
        temperature=0,
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
    )
    return completion.choices[0].text


def ask_on(server: Server) -> None:
    """Until something fails. One long answer would not do: on few cores vLLM's engine, which
    waits for its worker in a loop, may let nobody else run until it has nothing to do."""
    while True:
        ask(server, 400)


def process_named(server: Server, name: str) -> psutil.Process:
    (found, *_) = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if name in " ".join(child.cmdline())
    ]
    return found


def our_files() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("headkv-*"))


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["VLLM::Worker", "VLLM::EngineCore"])
def test_a_killed_process_ends_the_server_and_every_request(tmp_path: Path, victim: str) -> None:
    """No request hangs, /health says so, and nothing is left: no process, no file."""
    before = our_files()
    scores = Path(shutil.copy(scores_dir() / "needle.json", tmp_path))
    with Server(checkpoint_path(), *arguments(scores)) as server, ThreadPoolExecutor() as threads:
        expected = ask(server)
        # What was read at the start is served to the end, whatever becomes of the file.
        scores.write_text("no score file")
        assert ask(server) == expected
        scores.unlink()
        assert ask(server) == expected
        clients = [threads.submit(ask_on, server) for _ in range(3)]
        time.sleep(2)
        assert not any(client.done() for client in clients)
        process_named(server, victim).kill()
        for client in clients:
            with pytest.raises(OpenAIError):
                client.result(timeout=PATIENCE)
        wait_for(lambda: not is_healthy(server), PATIENCE)
        wait_for(lambda: not server.is_running(), PATIENCE)
        wait_for(lambda: not server.has_processes(), PATIENCE)
    assert our_files() == before


def is_healthy(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def test_no_decision_hangs_on_the_clock_on_the_wall() -> None:
    """Clocks jump; durations are taken from clocks that do not. Two places tell people the time."""
    package = Path(headkv_vllm.__file__).parent
    looking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in WALL_CLOCKS
    }
    assert looking == {"server/stats.py", "evaluation/run_record.py"}
