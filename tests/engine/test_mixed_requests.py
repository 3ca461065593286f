# SPDX-License-Identifier: Apache-2.0
"""Requests with budgets and policies of their own in one batch: each is answered as if alone."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import scores_dir
from tests.engine.conftest import Engines
from tests.engine.helpers import inside, stepping
from tests.engine.helpers.inside import Answer
from tests.engine.helpers.prompts import needle_prompt
from tests.engine.helpers.reference import Compression, Reference, folded_scores
from tests.engine.test_reference import assert_same

pytestmark = pytest.mark.engine

SCORES = scores_dir() / "needle.json"
NUM_STEPS, NUM_TOKENS = 28, 700
OWN: list[dict[str, Any]] = [
    {},
    {"headkv_budget": 0},
    {"headkv_budget": 40},
    {"headkv_budget": 256},
    {"headkv_keep_ratio": 0.1},
    {"headkv_budget": 64, "headkv_policy": "adakv"},
    {"headkv_budget": 40, "headkv_policy": "uniform"},
    {"headkv_policy": "headkv_ada"},
    {"headkv_policy": "streaming"},
    {"headkv_keep_ratio": 0.2, "headkv_policy": "pyramidkv"},
    {"headkv_policy": "random"},
    {"headkv_budget": 4096},
]
PROMPTS = [needle_prompt(NUM_TOKENS + 3 * seed, seed=seed) for seed in range(len(OWN))]


@pytest.fixture(scope="module")
def engine(engines: Engines) -> Iterator[EngineProcess]:
    running = engines.headkv({"budget": 128, "scores": str(SCORES)})
    assert running.call(inside.reset_prefix_cache)
    yield running
    running.call(stepping.drain)


@pytest.fixture(scope="module")
def alone(engine: EngineProcess) -> list[Answer]:
    """Each prompt's answer when it is the only request."""
    found = []
    for prompt, own in zip(PROMPTS, OWN, strict=True):
        found += ask(engine, [prompt], [own])
    return found


def ask(
    engine: EngineProcess,
    prompts: list[list[int]],
    own: list[dict[str, Any]],
    chunk: int | None = None,
) -> list[Answer]:
    assert engine.call(inside.reset_prefix_cache)
    given: list[Answer] = engine.call(
        inside.answer, prompts, NUM_STEPS, chunk=chunk, own=own, logprobs=20, ignore_eos=True
    )
    return given


def test_alone_each_is_answered_as_the_reference_does(alone: list[Answer]) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # engines have bound the cores to threads of their own
    reference = Reference(checkpoint_path())
    for prompt, own, given in zip(PROMPTS, OWN, alone, strict=True):
        expected = reference.answer(
            reference.read(prompt), told(reference, len(prompt), own), NUM_STEPS
        )
        assert_same(given, expected, str(own))
    torch.set_num_threads(num_threads)


def told(reference: Reference, num_prompt_tokens: int, own: dict[str, Any]) -> Compression | None:
    budget = own.get("headkv_budget", 128)
    if "headkv_keep_ratio" in own:
        budget = int(own["headkv_keep_ratio"] * num_prompt_tokens)
    policy = own.get("headkv_policy", "headkv")
    uses_scores = policy in ("headkv", "headkv_ada", "random")
    scores = folded_scores(SCORES, reference.num_kv_heads, "mean") if uses_scores else None
    return Compression(budget, 16, scores, policy) if budget else None


@pytest.mark.parametrize("chunk", [None, 256, 1024])
@pytest.mark.parametrize("seed", [0, 1])
def test_together_each_is_answered_as_alone(
    engine: EngineProcess, alone: list[Answer], seed: int, chunk: int | None
) -> None:
    order = list(range(len(OWN)))
    random.Random(seed).shuffle(order)
    given = ask(engine, [PROMPTS[i] for i in order], [OWN[i] for i in order], chunk)
    assert [g.token_ids for g in given] == [alone[i].token_ids for i in order]


def test_one_prompt_under_all_arguments_at_once(engine: EngineProcess) -> None:
    """They share its prompt blocks, which the first of them gives up before the others."""
    prompts = [PROMPTS[0]] * len(OWN)
    each = [ask(engine, [PROMPTS[0]], [own])[0].token_ids for own in OWN]
    assert len(set(map(tuple, each))) > 2
    assert [given.token_ids for given in ask(engine, prompts, OWN)] == each


def test_preempted_each_goes_on_as_before(engine: EngineProcess, alone: list[Answer]) -> None:
    assert engine.call(inside.reset_prefix_cache)
    requests = [
        engine.call(stepping.add, prompt, NUM_STEPS, ignore_eos=True, extra_args=own)
        for prompt, own in zip(PROMPTS, OWN, strict=True)
    ]
    engine.call(stepping.step_until_computed, requests[-1], len(PROMPTS[-1]) + 10)
    engine.call(stepping.preempt_all, True)
    finished = engine.call(stepping.drain)
    given = [finished[request.split("-")[0]].token_ids for request in requests]
    assert given == [answer.token_ids for answer in alone]


@pytest.mark.parametrize("own", [{"headkv_budget": 3}, {"headkv_polic": "uniform"}], ids=str)
def test_a_bad_argument_is_refused_and_the_next_request_is_served(
    engine: EngineProcess, alone: list[Answer], own: dict[str, Any]
) -> None:
    with pytest.raises(RuntimeError, match="VLLMValidationError"):
        ask(engine, [PROMPTS[0]], [own])
    (given,) = ask(engine, [PROMPTS[0]], [OWN[0]])
    assert given.token_ids == alone[0].token_ids
