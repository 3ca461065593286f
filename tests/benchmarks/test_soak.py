# SPDX-License-Identifier: Apache-2.0
"""Two minutes of mixed traffic against a real server, and whether the soak would notice a fault."""

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.traffic import Tally, TrafficAnswer, draw_questions, visit
from benchmarks.soak import Memory


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mixed_traffic_changes_no_answer_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "100", "--questions", "60"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    (row,) = found["rows"]
    assert (
        row["requests"] > 200
        and row["compressed requests"] > 100
        and row["compressions"] > 200
        and row["preemptions"] > 0
    )
    wrong, failed, hung, left = (bar["value"] for bar in found["bars"][:4])
    assert wrong == failed == hung == left == 0
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_questions_differ_and_are_the_same_for_a_seed() -> None:
    questions = draw_questions(40, seed=3)
    assert questions == draw_questions(40, seed=3) != draw_questions(40, seed=4)
    bodies = [json.dumps(question.body) for question in questions]
    for part in ("headkv_budget", "headkv_policy", "stop", "logprobs", "structured_outputs"):
        assert any(part in body for body in bodies)
    beginnings = [question.prompt[:40] for question in questions]
    assert len(set(beginnings)) < len(beginnings)


class Forgetful:
    """Answers as a server would that gives some requests other tokens."""

    async def ask(self, question: object) -> TrafficAnswer:
        return TrafficAnswer("other", "length", ())

    async def read(self, question: object, num_chunks: int | None = None) -> TrafficAnswer | None:
        return TrafficAnswer("right", "stop", ()) if num_chunks is None else None

    async def sample(self, question: object) -> int:
        return 1


def test_a_wrong_answer_is_noticed() -> None:
    (question,) = draw_questions(1, seed=0)
    tally, chance = Tally(), random.Random(0)

    async def visits() -> None:
        for _ in range(60):
            await visit(Forgetful(), question, TrafficAnswer("right", "length", ()), chance, tally)

    asyncio.run(visits())
    manners = tally.manners
    assert min(manners.values()) > 0
    assert len(tally.wrong) == manners["plain"] + manners["streamed"] + manners["sampled twice"]


def test_growth_compares_the_end_with_the_second_quarter() -> None:
    assert Memory([0.0] * 8, [1, 1, 2, 2, 3, 3, 4, 4]).growth == 1
    assert Memory([0.0], [5]).growth == 0
