# SPDX-License-Identifier: Apache-2.0
"""The demonstration, run as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headkv_vllm.demo.documents import DOCUMENT, QUESTIONS
from tests.real_model import find_real_model

HEADKV = Path(sys.executable).with_name("headkv")
ANSWER = re.compile(r"^  (\w.*):\s+(\d+) blocks, +([\d.]+) MiB, +(\d+) ms a token, (right|wrong)$")


def run(*arguments: str) -> list[list[tuple[str, int]]]:
    """What each question's answers kept, and the blocks that they held."""
    demo = subprocess.run(
        [HEADKV, "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={"COLUMNS": "80", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    *_, last = demo.stdout.splitlines()
    assert re.fullmatch(r"(\d+) of \1 answers from compressed prompts are right\.", last), last
    lines = demo.stdout.splitlines()[1:]  # the first is the command, to be copied
    assert max(map(len, lines)) <= 80
    assert re.search(r"[1-9][\d,]* of [\d,]+ tokens from the prefix cache", demo.stdout)
    found = [(match[1], int(match[2])) for line in lines if (match := ANSWER.match(line))]
    return [found[start : start + 3] for start in range(0, len(found), 3)]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("is_real", [True, False], ids=["real model", "needle model"])
def test_compressed_answers_are_right_and_hold_fewer_blocks(is_real: bool) -> None:
    questions = run(str(find_real_model())) if is_real else run("--needle")
    assert len(questions) == (len(QUESTIONS) if is_real else 4)
    for (whole, whole_blocks), (quarter, quarter_blocks), (eighth, eighth_blocks) in questions:
        assert (whole, quarter, eighth) == ("the whole prompt", "a quarter", "an eighth")
        assert whole_blocks > 3 * quarter_blocks > 4 * eighth_blocks


def test_the_page_states_each_answer_once() -> None:
    page = DOCUMENT.read_text()
    for question, expected in QUESTIONS.items():
        assert len(re.findall(rf"\b{expected}\b", page)) == 1, question


@pytest.mark.parametrize("arguments", [[], ["model", "--needle"]], ids=str)
def test_it_asks_one_model(arguments: list[str]) -> None:
    ended = subprocess.run([HEADKV, "demo", *arguments], capture_output=True, text=True)
    assert ended.returncode == 2 and "give a MODEL, or --needle" in ended.stderr
