# SPDX-License-Identifier: Apache-2.0
"""`headkv eval` on real servers of the needle model, with and without compression.

All policies and budgets are asked of one server, whose prefix cache they share. What they answer is
compared with engines that have nothing else to do.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.demo.server import HELD
from headkv_vllm.evaluation.cells import CellCompression
from headkv_vllm.evaluation.prompts import load_tokenizer, read_prompts
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import resolve
from headkv_vllm.needle import checkpoint_path
from tests.engine.conftest import COMMON, ENVIRONMENT
from tests.engine.helpers import inside
from tests.interrupts import heed_interrupts

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

N, TOKENS, BUDGET, RATIO = 4, 512, 128, 0.1
TASKS = ("needle/single", "needle/multi-query")
SETTINGS = {"pooling": "max", "kernel_size": 7}
"""The needles of this model are shorter than the answers of a language model."""
COMMAND = [
    *(sys.executable, "-c", "from headkv_vllm.cli.main import app; app()", "eval"),
    *(str(checkpoint_path()), "--lengths", str(TOKENS), "-n", str(N), "--seed", "2"),
    *("--budgets", f"{BUDGET},{RATIO}", "--dtype", "float32", "--max-model-len", "1024"),
    *("--serve-args", "--enforce-eager --max-num-seqs 8", "--settings", json.dumps(SETTINGS)),
]


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--out", str(out), *arguments]
    # The log says at this level what each request held.
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def cells(out: Path) -> dict[tuple[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """Results by task and sample, by policy and budget."""
    found: dict[tuple[str, Any], dict[tuple[str, str], dict[str, Any]]] = {}
    for result in results(out):
        cell = found.setdefault((result["policy"], result["budget"]), {})
        cell[result["task"], result["id"]] = result
    assert all(len(cell) == 2 * N for cell in found.values())
    return found


class TestTwoServers:
    ARGUMENTS = ("--tasks", ",".join(TASKS), "--policies", "full,headkv,adakv")

    @pytest.fixture(scope="class")
    @staticmethod
    def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("eval") / "out"
        done = run(out, *TestTwoServers.ARGUMENTS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(out / "report.md")
        assert "warning" not in done.stderr  # of memory that is not as planned
        return out

    def test_all_answer_from_what_they_keep(self, out: Path) -> None:
        scores = {
            cell: sum(result["score"] for result in found.values()) / (2 * N)
            for cell, found in cells(out).items()
        }
        assert scores["full", None] >= 0.9 and scores["headkv", BUDGET] >= 0.8
        assert scores["adakv", RATIO] < scores["headkv", RATIO]

    @pytest.mark.parametrize(
        ("policy", "budget"), [("headkv", RATIO), ("adakv", BUDGET)], ids=["headkv", "adakv"]
    )
    def test_answers_are_those_of_an_engine_for_each_cell(
        self, out: Path, policy: str, budget: int | float
    ) -> None:
        settings = CellCompression(policy, budget).settings(SETTINGS).model_dump(exclude_none=True)
        engine = EngineProcess(
            ENVIRONMENT,
            model=str(checkpoint_path()),
            attention_backend="HEADKV",
            additional_config={"headkv": settings},
            enable_prefix_caching=False,
            **COMMON,
        )
        prompts = read_prompts(out)
        answers = [
            engine.call(inside.generate, [list(prompt.ids)], prompt.sample.max_new_tokens)[0]
            for prompt in prompts
        ]
        engine.stop()
        found = cells(out)[policy, budget]
        tokenizer = load_tokenizer(str(checkpoint_path()))
        for prompt, answer in zip(prompts, answers, strict=True):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            assert found[prompt.sample.task, prompt.sample.id]["text"].strip() == text

    def test_the_memory_is_what_the_plan_says(self, out: Path) -> None:
        identity = identify_checkpoint(checkpoint_path())
        for (policy, budget), found in cells(out).items():
            full = policy == "full"
            settings = (
                Settings(budget=0) if full else CellCompression(policy, budget).settings(SETTINGS)
            )
            scores = resolve(settings, identity).values
            plan = make_plan(scores, settings, TOKENS, 16, identity.head_size, 4)
            for result in found.values():
                assert result["num_prompt_tokens"] == TOKENS
                assert result["full_bytes"] == plan.kv_bytes_stock
                assert result["kept_bytes"] == plan.kv_bytes_held
                assert result["kept_tokens"] == plan.mean_kept_tokens

    def test_the_server_held_what_the_plan_says(self, out: Path) -> None:
        (block_bytes,) = {result["full_bytes"] // (TOKENS // 16) for result in results(out)}
        kept = [
            result["kept_bytes"] // block_bytes
            for result in results(out)
            if result["policy"] != "full"
        ]
        held = HELD.findall((out / "server-headkv.log").read_text())
        assert sorted(int(after) for _, _, after in held) == sorted(kept)
        assert not HELD.findall((out / "server-stock.log").read_text())

    def test_the_same_again_asks_nothing_and_starts_nothing(self, out: Path) -> None:
        before = (out / "results.jsonl").read_bytes()
        for log in out.glob("*.log"):
            log.rename(log.with_suffix(".kept"))
        done = run(out, *self.ARGUMENTS)
        assert done.returncode == 0 and "40 of 40 samples have results already" in done.stderr
        assert (out / "results.jsonl").read_bytes() == before
        assert not list(out.glob("*.log"))

    def test_one_server_and_a_late_question_change_nothing_where_all_is_kept(
        self, out: Path, tmp_path: Path
    ) -> None:
        """The whole cache of our server is stock vLLM's, before and after the question is known."""
        arguments = ("--tasks", TASKS[1], "--policies", "full", "--no-stock", "--question-agnostic")
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.glob("*.log")] == ["server-headkv.log"]
        whole = cells(out)["full", None]
        found = results(tmp_path)
        assert len(found) == N
        for result in found:
            assert result["forced_tokens"] == 6  # "? key key key key :"
            assert result["num_prompt_tokens"] + result["forced_tokens"] == TOKENS
            assert result["text"].strip() == whole[TASKS[1], result["id"]]["text"].strip()


@pytest.mark.parametrize(
    ("number", "status", "last_word"),
    [
        (signal.SIGINT, 130, "interrupted; the same command continues the run"),
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
