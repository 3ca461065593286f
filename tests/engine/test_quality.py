# SPDX-License-Identifier: Apache-2.0
"""HeadKV keeps what answers need: four questions at once about 1,024 tokens, 128 of them kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import NeedleSample, generate_samples
from headkv_vllm.resources import scores_dir
from tests.engine.conftest import Engines
from tests.engine.helpers import inside

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SCORES = scores_dir() / "needle.json"
BUDGET = 128
# The needles of this model are shorter than the answers of a language model: configs/needle.yaml.
KEPT = {"budget": BUDGET, "pooling": "max", "kernel_size": 7}
NUM_PROMPTS = 100
ANSWER_LENGTH = 32
"""Tokens: four entries of seven, and room to go wrong."""


@pytest.fixture(scope="module")
def samples() -> list[NeedleSample]:
    return list(generate_samples("multi-query", 1024, NUM_PROMPTS, seed=20241025))


@pytest.fixture(scope="module")
def bad_scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score file with the best heads' scores given to the worst, and the other way round."""
    document = json.loads(SCORES.read_text())
    width = len(document["scores"][0])
    scores = [score for row in document["scores"] for score in row]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    for worst, best in zip(order, order[::-1], strict=True):
        row, column = divmod(worst, width)
        document["scores"][row][column] = scores[best]
    path = tmp_path_factory.mktemp("scores") / "bad.json"
    path.write_text(json.dumps(document))
    return path


class Accuracy:
    """Per cent of the questions that each kind of engine answers in full, measured once."""

    def __init__(self, engines: Engines, samples: list[NeedleSample], bad_scores: Path) -> None:
        self._samples = samples
        self._engines: dict[str, Callable[[], EngineProcess]] = {
            "stock vLLM": lambda: engines.stock(block_size=32),
            "HeadKV": lambda: engines.headkv({**KEPT, "scores": str(SCORES)}),
            "uniform": lambda: engines.headkv({**KEPT, "policy": "uniform"}),
            "bad scores": lambda: engines.headkv({**KEPT, "scores": str(bad_scores)}),
        }
        self.measured: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        if name not in self.measured:
            self.measured[name] = per_cent_right(self._engines[name](), self._samples)
        return self.measured[name]


@pytest.fixture(scope="module")
def accuracy(engines: Engines, samples: list[NeedleSample], bad_scores: Path) -> Iterator[Accuracy]:
    accuracy = Accuracy(engines, samples, bad_scores)
    yield accuracy
    print(f"\n{4 * len(samples)} questions, {BUDGET} of 1,024 tokens per KV head")
    for name, value in accuracy.measured.items():
        print(f"{name:<12}{value:6.1f} %")


def per_cent_right(engine: EngineProcess, samples: list[NeedleSample]) -> float:
    answers = engine.call(inside.answer, [sample.prompt for sample in samples], ANSWER_LENGTH)
    grades = [grade(s.answer, given.text) for s, given in zip(samples, answers, strict=True)]
    return 100 * sum(g.questions_right for g in grades) / sum(g.questions for g in grades)


def test_the_whole_cache_answers_nearly_all(accuracy: Accuracy) -> None:
    assert accuracy["stock vLLM"] >= 80


def test_headkv_keeps_most_of_it_and_beats_uniform_budgets(accuracy: Accuracy) -> None:
    assert accuracy["HeadKV"] >= 0.8 * accuracy["stock vLLM"]
    assert accuracy["HeadKV"] >= accuracy["uniform"] + 20


def test_scores_make_the_difference(accuracy: Accuracy) -> None:
    assert accuracy["bad scores"] < accuracy["uniform"]
