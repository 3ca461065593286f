# SPDX-License-Identifier: Apache-2.0
"""`headkv eval` on real servers of the needle model, with and without compression."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.demo import HELD
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.scores.head_scores import resolve
from headkv_vllm.scores.identity import identify_checkpoint
from tests.interrupts import heed_interrupts

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

N, TOKENS, BUDGET = 4, 512, 128
COMMAND = [
    *(sys.executable, "-c", "from headkv_vllm.cli import app; app()", "eval"),
    *(str(checkpoint_path()), "--lengths", str(TOKENS), "-n", str(N), "--seed", "2"),
    *("--budgets", str(BUDGET), "--dtype", "float32", "--max-model-len", "1024"),
    *("--serve-args", "--enforce-eager --max-num-seqs 8"),
]


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--out", str(out), *arguments]
    # The log says at this level what each request held.
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def mean_score(found: list[dict[str, Any]], policy: str, task: str) -> float:
    scores = [r["score"] for r in found if (r["policy"], r["task"]) == (policy, task)]
    assert len(scores) == N
    return sum(scores) / N


class TestTwoPolicies:
    ARGUMENTS = ("--tasks", "needle/single,needle/multi-query", "--policies", "full,headkv")

    @pytest.fixture(scope="class")
    @staticmethod
    def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("eval") / "out"
        done = run(out, *TestTwoPolicies.ARGUMENTS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(out / "report.md")
        return out

    def test_both_answer_from_what_they_keep(self, out: Path) -> None:
        found = results(out)
        for task in ("needle/single", "needle/multi-query"):
            assert mean_score(found, "full", task) >= 0.8
            assert mean_score(found, "headkv", task) >= 0.6

    def test_the_memory_is_what_the_plan_says(self, out: Path) -> None:
        identity = identify_checkpoint(checkpoint_path())
        settings = Settings(budget=BUDGET)
        scores = resolve(settings, identity).values
        plan = make_plan(scores, settings, TOKENS, 16, identity.head_size, 4)
        for result in results(out):
            assert result["num_prompt_tokens"] == TOKENS
            assert result["full_bytes"] == plan.kv_bytes_stock
            stock = result["policy"] == "full"
            assert result["kept_bytes"] == (plan.kv_bytes_stock if stock else plan.kv_bytes_held)

    def test_the_servers_held_what_the_plan_says(self, out: Path) -> None:
        (block_bytes,) = {r["full_bytes"] // (TOKENS // 16) for r in results(out)}
        kept = {r["kept_bytes"] // block_bytes for r in results(out) if r["policy"] == "headkv"}
        held = HELD.findall((out / "server-headkv-128.log").read_text())
        assert len(held) == 2 * N and {int(after) for _, _, after in held} == kept
        assert not HELD.findall((out / "server-full.log").read_text())

    def test_the_same_again_asks_nothing_and_starts_nothing(self, out: Path) -> None:
        before = (out / "results.jsonl").read_bytes()
        for log in out.glob("*.log"):
            log.unlink()
        done = run(out, *self.ARGUMENTS)
        assert done.returncode == 0 and "16 of 16 samples are known already" in done.stderr
        assert (out / "results.jsonl").read_bytes() == before
        assert not list(out.glob("*.log"))


def test_question_agnostic_answers_from_the_whole_cache_as_well(tmp_path: Path) -> None:
    """With all kept, it makes no difference when the question comes."""
    arguments = ("--tasks", "needle/multi-query", "--policies", "full", "--question-agnostic")
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert mean_score(found, "full", "needle/multi-query") >= 0.8
    for result in found:
        assert result["forced_tokens"] == 6  # "? key key key key :"
        assert result["num_prompt_tokens"] + result["forced_tokens"] == TOKENS
        assert "?" not in result["text"]


@pytest.mark.parametrize(
    ("number", "status", "last_word"),
    [
        (signal.SIGINT, 130, "interrupted; the same command goes on where it stopped"),
        (signal.SIGTERM, 143, None),
    ],
)
def test_a_signal_while_a_server_starts_leaves_none(
    tmp_path: Path, number: signal.Signals, status: int, last_word: str | None
) -> None:
    command = [*COMMAND, "--out", str(tmp_path), "--tasks", "needle/single", "--policies", "full"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        servers: list[int] = []
        while not (servers and list(tmp_path.glob("*.log"))) and process.poll() is None:
            time.sleep(0.05)
            servers = children(process.pid)
        process.send_signal(number)
        errors = process.communicate(timeout=90)[1]
    assert process.returncode == status, errors
    assert last_word is None or errors.splitlines()[-1] == last_word
    assert "Traceback" not in errors
    assert servers and not any(Path(f"/proc/{pid}").exists() for pid in servers)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]
