# SPDX-License-Identifier: Apache-2.0
"""kvpress beside an evaluation: the same prompts and kept tokens, and its own answers."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.kvpress.asking import request
from benchmarks.kvpress.environment import ROOT
from benchmarks.kvpress.results import Run, same_answers
from headkv_vllm.errors import HeadKVError
from headkv_vllm.evaluation.prompts import load_tokenizer
from tests.benchmarks.made_up_runs import MODEL, made_up_run

TOKENS, N = 256, 3
KEPT = {64: 64, 0.5: 128, 256: 256}
"""By budget; with the last of them nothing is given up."""
PYTHON = ROOT / ".cache" / "kvpress-venv" / "bin" / "python"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an evaluation of two tasks with three budgets leaves."""
    cells = {("uniform", budget): (kept, 0.0) for budget, kept in KEPT.items()}
    return made_up_run(tmp_path, ("needle/single", "needle/multi-key"), N, TOKENS, cells)


def answered(asked, prompt, press, kept, text):
    tokenizer = load_tokenizer(MODEL)
    answer = {"digest": prompt["digest"], "press": press, "kept": kept, "counted": kept, "bytes": 9}
    ids = tokenizer.encode(text, add_special_tokens=False)
    with open(asked["answers"], "a") as stream:
        stream.write(json.dumps({**answer, "ids": ids}) + "\n")


def test_presses_are_asked_the_same_at_as_many_tokens(folder: Path) -> None:
    run = Run.read(folder)
    asked = request(run, ["snapkv", "kvzip"], None)
    assert (asked["model"], asked["dtype"]) == (MODEL, "float32")
    assert (asked["window"], asked["kernel_size"]) == (16, 15)
    assert len(asked["prompts"]) == 2 * N
    for prompt in asked["prompts"]:
        assert prompt["ids"] == run.prompts[prompt["digest"]].ids
        assert prompt["kept"] == [64, 128] and prompt["presses"] == ["snapkv", "kvzip"]
    assert len(request(run, ["snapkv"], 1)["prompts"]) == 2


def test_answers_are_scored_as_ours_and_not_asked_again(folder: Path) -> None:
    run = Run.read(folder)
    asked = request(run, ["snapkv"], None)
    first, second, *rest = asked["prompts"]
    right = run.prompts[first["digest"]].sample.answers[0]
    for kept, text in ((64, "wrong"), (128, right)):
        answered(asked, first, "snapkv", kept, text)
    answered(asked, second, "snapkv", 64, "wrong")
    with open(asked["answers"], "a") as stream:
        stream.write('{"digest": "cut sh')
    again = request(run, ["snapkv"], None)
    assert [prompt["digest"] for prompt in again["prompts"]] == [
        prompt["digest"] for prompt in (second, *rest)
    ]
    found = [(r.policy, r.budget, r.score, r.kept_tokens, r.kept_bytes) for r in run.theirs()]
    assert found == [
        ("kvpress/snapkv", 0.5, 1.0, 128, 9),
        ("kvpress/snapkv", 64, 0.0, 64, 9),
        ("kvpress/snapkv", 64, 0.0, 64, 9),
    ]
    # Ours say nothing here, and so does a word that the model does not know.
    assert same_answers([*run.results, *run.theirs()]) == [
        "kvpress/snapkv and uniform, 256 tokens: 2 of 3 answers are the same, letter for letter."
    ]
    assert len(same_answers(run.results)) == 0


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadKVError, match=r"run\.json' is not a record of a run"):
        Run.read(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="python -m benchmarks.kvpress makes it, in minutes")
def test_answers_are_those_of_kvpress_used_in_the_ordinary_way(folder: Path) -> None:
    """Each press on each prompt alone, by its own context manager; and its batch of all presses."""
    asked = request(Run.read(folder), [], None)
    run = Run.read(folder)
    asked["prompts"] = [
        {"digest": digest, "ids": prompt.ids, "max_tokens": 12, "kept": [32, 96]}
        for digest, prompt in run.prompts.items()
    ]
    path = folder / "request.json"
    path.write_text(json.dumps(asked))
    script = Path(__file__).with_name("kvpress_ordinary.py")
    done = subprocess.run([PYTHON, script, path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same", "11", "presses"]
