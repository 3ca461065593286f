# SPDX-License-Identifier: Apache-2.0
"""An evaluation that was interrupted ends with the same results as one that was not."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.evaluation.prompts import load_tokenizer
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from tests.evaluation.answering import answering, completion
from tests.interrupts import heed_interrupts

N, TOKENS = 6, 128
TASKS = ("single", "multi-query")
ANSWERS = {
    sample.prompt: sample.answer
    for task in TASKS
    for sample in generate_samples(task, TOKENS, N, 0)
}
PROMPTS = list(ANSWERS)
TOKENIZER = load_tokenizer(str(checkpoint_path()))


def right_or_wrong(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The right answer to every prompt with an even number."""
    prompt = TOKENIZER.decode(body["prompt"], skip_special_tokens=True)
    return completion("" if PROMPTS.index(prompt) % 2 else ANSWERS[prompt])


def arguments(url: str, out: Path) -> list[str]:
    tasks = ",".join(f"needle/{task}" for task in TASKS)
    options = {"tasks": tasks, "lengths": TOKENS, "url": url, "out": out}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["eval", str(checkpoint_path()), "-n", str(N), *words]


def run(url: str, out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, [*arguments(url, out), *more])


def results(out: Path) -> list[dict[str, Any]]:
    """In no order: answers come as they come."""
    lines = (out / "results.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda result: (result["task"], result["id"]))


def table(out: Path) -> list[str]:
    return [line for line in (out / "report.md").read_text().splitlines() if line.startswith("|")]


def test_resumed_and_uninterrupted_runs_give_the_same(tmp_path: Path) -> None:
    num_replies = 0
    breaks = False

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal num_replies
        num_replies += 1
        if breaks and num_replies > 5:
            return 500, {"error": {"message": "out of order"}}
        return right_or_wrong(body)

    with answering(reply) as server:
        assert run(server.url, tmp_path / "whole").exit_code == 0
        num_replies, breaks = 0, True
        broken = run(server.url, tmp_path / "parts", "--concurrency", "1")
        assert broken.exit_code == 1 and "got no answer" in broken.stderr.splitlines()[-1]
        assert len(results(tmp_path / "parts")) == 5
        breaks = False
        resumed = run(server.url, tmp_path / "parts")
        assert resumed.exit_code == 0 and "5 of 12 samples have results" in resumed.stderr
        asked = len(server.bodies)
        assert asked == 12 + 6 + 7
        again = run(server.url, tmp_path / "parts")
        assert again.exit_code == 0 and len(server.bodies) == asked
        assert again.stdout.strip() == str(tmp_path / "parts" / "report.md")
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert [result["score"] for result in results(tmp_path / "whole")].count(1.0) == 6
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert "| needle/single | 128 | given | - | 50.0 (" in table(tmp_path / "whole")[2]


def test_more_samples_and_tasks_add_to_what_there_is(tmp_path: Path) -> None:
    with answering(right_or_wrong) as server:
        assert run(server.url, tmp_path, "-n", "2", "--tasks", "needle/single").exit_code == 0
        assert len(server.bodies) == 2 and len(table(tmp_path)) == 2 + 1
        assert run(server.url, tmp_path).exit_code == 0
        assert len(server.bodies) == 12 and len(table(tmp_path)) == 2 + 2
        refused = run(server.url, tmp_path, "--seed", "1")
    assert refused.exit_code == 1 and "with seed 0 instead of 1" in refused.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT to send")
def test_ctrl_c_ends_it_in_one_line_and_keeps_what_is_done(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(server.bodies) > 3:
            time.sleep(5)
        return right_or_wrong(body)

    with answering(reply) as server:
        command = [sys.executable, "-c", "from headkv_vllm.cli.main import app; app()"]
        command += [*arguments(server.url, tmp_path), "--concurrency", "1"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        ) as process:
            while len(server.bodies) < 4 and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; the same command continues the run"
    assert "Traceback" not in errors
    assert len(results(tmp_path)) == 3


def no_file_beyond(num_bytes: int) -> None:
    """What a full disk does to a file that grows: its last line is cut short, and no more fits."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def test_a_full_disk_ends_it_in_one_line_and_keeps_what_is_done(tmp_path: Path) -> None:
    parts, room = tmp_path / "parts", 30 << 10  # the prompts take less, and long answers more
    with answering(lambda body: completion(" word" * 800)) as server:
        assert run(server.url, tmp_path / "whole").exit_code == 0
        command = [sys.executable, "-c", "from headkv_vllm.cli.main import app; app()"]
        broken = subprocess.run(
            [*command, *arguments(server.url, parts), "--concurrency", "1"],
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            preexec_fn=lambda: no_file_beyond(room),
        )
        written = (parts / "results.jsonl").read_bytes()
        assert len(written) == room and not written.endswith(b"\n")
        assert broken.returncode == 1 and "Traceback" not in broken.stderr
        assert broken.stderr.splitlines()[-1].endswith("cannot be used: File too large")
        resumed = run(server.url, parts)
        assert resumed.exit_code == 0
        assert f"{written.count(10)} of 12 samples have results" in resumed.stderr
    assert 1 < written.count(10) < 12
    assert results(parts) == results(tmp_path / "whole")
