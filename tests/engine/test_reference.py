# SPDX-License-Identifier: Apache-2.0
"""The engine answers a compressed prompt as plain PyTorch does, see `reference`."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import scores_dir
from tests.engine.conftest import Engines
from tests.engine.helpers.inside import Answer, answer, assert_pool_is_whole
from tests.engine.helpers.prompts import needle_prompt
from tests.engine.helpers.reference import Compression, Prefill, Reference, folded_scores

pytestmark = pytest.mark.engine

SCORES = scores_dir() / "needle.json"
LENGTHS = (200, 512, 1000, 2048)
BUDGETS = (40, 64, 128, 256)
FEW_LENGTHS, FEW_BUDGETS = (512, 1000, 2048), (40, 128)
NUM_STEPS = 28
"""The answer to four questions."""
ROUNDING = 1e-3
"""Of a log-probability: both sides compute in float32, in other orders."""


class Case(NamedTuple):
    """One engine. told: what the reference is told besides the budget and the scores.

    fold: how scores become those of KV heads, or None for a policy that uses none.
    shared: whether other tests use this engine.
    """

    settings: dict[str, Any]
    arguments: dict[str, Any]
    told: dict[str, Any]
    fold: str | None
    lengths: tuple[int, ...] = LENGTHS
    budgets: tuple[int, ...] = BUDGETS
    shared: bool = True


def case_of(policy: str, uses_scores: bool = False, **settings: Any) -> Case:
    """A policy, with other settings under the names by which the reference knows them too."""
    scores = {"scores": str(SCORES)} if uses_scores else {}
    return Case(
        {"budget": 128, "policy": policy, **scores, **settings},
        {},
        {"block_size": 16, "policy": policy, **settings},
        "mean" if uses_scores else None,
        FEW_LENGTHS,
        FEW_BUDGETS,
        shared=policy == "adakv",
    )


CASES = {
    "headkv": Case({"budget": 128, "scores": str(SCORES)}, {}, {"block_size": 16}, "mean"),
    "uniform": Case({"budget": 128, "policy": "uniform"}, {}, {"block_size": 16}, None),
    "all settings": Case(
        {
            "budget": 128,
            "scores": str(SCORES),
            "gqa_fold": "max",
            "beta": 2.0,
            "window": 16,
            "kernel_size": 5,
            "pooling": "max",
        },
        {"block_size": 32},
        {"block_size": 32, "beta": 2.0, "window": 16, "kernel_size": 5, "pooling": "max"},
        "max",
    ),
    "pyramidkv, by the most attentive query": case_of("pyramidkv", query_reduction="max"),
    "random, by value norms": case_of("random", uses_scores=True, value_norm=True),
    "streaming": case_of("streaming", sink=20),
    "adakv": case_of("adakv"),
    "headkv_ada, all options": case_of(
        "headkv_ada", uses_scores=True, query_reduction="max", value_norm=True
    ),
}


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # engines have bound the cores to threads of their own
    yield Reference(checkpoint_path())
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def prefills(reference: Reference) -> dict[int, Prefill]:
    return {length: reference.read(needle_prompt(length, seed=length)) for length in LENGTHS}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name == "headkv" else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_tokens_and_logprobs_equal_the_reference(
    case: Case, engines: Engines, reference: Reference, prefills: dict[int, Prefill]
) -> None:
    engine = engines.headkv(case.settings, **case.arguments)
    scores = case.fold and folded_scores(SCORES, reference.num_kv_heads, case.fold)
    prompts = [needle_prompt(length, seed=length) for length in case.lengths]
    changed = []
    for budget in case.budgets:
        how = Compression(budget, scores=scores or None, **case.told)
        answers = engine.call(
            answer, prompts, NUM_STEPS, budget=budget, logprobs=20, ignore_eos=True
        )
        for length, given in zip(case.lengths, answers, strict=True):
            expected = reference.answer(prefills[length], how, NUM_STEPS)
            assert_same(given, expected, f"{length} tokens, budget {budget}")
            whole = reference.answer(prefills[length], None, NUM_STEPS)
            changed.append(float((expected[1] - whole[1]).abs().max()) > 10 * ROUNDING)
    if not case.shared:
        engines.end(engine)
    # Otherwise this would hold without any compression.
    assert sum(changed) > len(changed) / 2


GENERATING = {
    "headkv": case_of("headkv", uses_scores=True, compress_every=64),
    "adakv, a window of two blocks": case_of("adakv", compress_every=40, window=32),
    "headkv_ada, all options": case_of(
        "headkv_ada", uses_scores=True, compress_every=48, query_reduction="max", value_norm=True
    ),
}
"""Requests that are compressed again while they generate."""
NUM_GENERATED = 180


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name == "headkv" else pytest.mark.slow)
        for name, case in GENERATING.items()
    ],
)
def test_generated_tokens_are_compressed_as_by_the_reference(
    case: Case, engines: Engines, reference: Reference
) -> None:
    """One prompt is compressed at its end, and the others when they have grown."""
    engine = engines.headkv(case.settings, **case.arguments)
    scores = case.fold and folded_scores(SCORES, reference.num_kv_heads, case.fold)
    prompts = [needle_prompt(length, seed=length) for length in (60, 300)]
    how = Compression(128, scores=scores or None, **case.told)
    given = engine.call(answer, prompts, NUM_GENERATED, logprobs=20, ignore_eos=True)
    once = dataclasses.replace(how, compress_every=0)
    for prompt, one in zip(prompts, given, strict=True):
        prefill = reference.read(prompt)
        expected = reference.answer(prefill, how, NUM_GENERATED)
        assert_same(one, expected, f"{len(prompt)} tokens")
        other = reference.answer(prefill, once, NUM_GENERATED)
        assert float((expected[-1] - other[-1]).abs().max()) > 10 * ROUNDING
    engines.end(engine)


def test_prompts_are_compressed_while_they_are_read_as_by_the_reference(
    engines: Engines, reference: Reference
) -> None:
    """The prompts have up to 8 times the tokens of the pool, which holds 256."""
    case = case_of("headkv_ada", uses_scores=True, compress_every=128, value_norm=True)
    budget, lengths = 72, (100, 136, 2048)
    engine = engines.headkv(
        {**case.settings, "compress_prefill": True, "budget": budget},
        **case.arguments,
        num_gpu_blocks_override=17,
    )
    scores = case.fold and folded_scores(SCORES, reference.num_kv_heads, case.fold)
    prompts = [needle_prompt(length, seed=length) for length in lengths]
    how = Compression(budget, scores=scores or None, **case.told)
    given = engine.call(answer, prompts, NUM_STEPS, logprobs=20, ignore_eos=True)
    for chunk in (48, 100):
        again = engine.call(answer, prompts, NUM_STEPS, chunk=chunk, ignore_eos=True)
        assert [one.token_ids for one in again] == [one.token_ids for one in given]
    # A request is compressed for the first time when it has twice its budget.
    first = 2 * 4 * 16 + 8
    for prompt, one in zip(prompts, given, strict=True):
        prefill, rest = reference.read(prompt[:first]), prompt[first:]
        expected = reference.answer(prefill, how, len(rest) + NUM_STEPS, forced=rest)
        assert_same(one, expected[len(rest) :], f"{len(prompt)} tokens")
    engine.call(assert_pool_is_whole)
    engines.end(engine)


def assert_same(given: Answer, expected: torch.Tensor, what: str) -> None:
    """expected: [num_steps, vocabulary] log-probabilities.

    Stops where rounding decides between two tokens: what follows are then different texts.
    """
    for step, (token, logprobs) in enumerate(zip(given.token_ids, given.logprobs, strict=True)):
        for candidate, logprob in logprobs.items():
            difference = abs(logprob - float(expected[step, candidate]))
            assert difference < ROUNDING, f"{what}: step {step}, token {candidate}: {difference}"
        best = int(expected[step].argmax())
        if token != best:
            gap = float(expected[step, best] - expected[step, token])
            print(f"{what}: step {step}: {token} for {best}, {gap:.1e} apart")
            assert gap < ROUNDING
            return
