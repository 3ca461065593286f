# SPDX-License-Identifier: Apache-2.0
"""Requests that are not compressed get stock vLLM's answers, to the last bit."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle import checkpoint_path
from tests.engine.conftest import COMMON, Engines
from tests.engine.helpers import inside
from tests.engine.helpers.inside import Answer, TokenIds
from tests.engine.helpers.prompts import needle_prompt, random_prompt

pytestmark = pytest.mark.engine

SETTINGS = {"budget": 4608}
BLOCK_SIZE = 32
"""Stock vLLM's CPU backend takes multiples of 32 only."""
LENGTHS = (1, 2, 7, 8, 9, 16, 17, 33, 100, 256, 257, 700, 1025, 2000, 3001, 4000)
CHUNK = 256
PROMPTS = [random_prompt(length, seed=length) for length in LENGTHS] + [
    needle_prompt(length, seed=length) for length in (300, 1024)
]


def answers(engine: EngineProcess, prompts: list[TokenIds], **limits: Any) -> list[Answer]:
    return list(engine.call(inside.answer, prompts, 24, logprobs=1, ignore_eos=True, **limits))


class Pair:
    """Stock vLLM and ours, asked the same."""

    def __init__(self, stock: EngineProcess, headkv: EngineProcess) -> None:
        self.stock, self.headkv = stock, headkv

    def reset(self) -> None:
        for engine in (self.stock, self.headkv):
            assert engine.call(inside.reset_prefix_cache)

    def ask(
        self, prompts: list[TokenIds], budget: int | None = None, **limits: Any
    ) -> list[Answer]:
        """Answers, which hold the log-probabilities and the number of cached tokens too."""
        expected = answers(self.stock, prompts, **limits)
        given = answers(self.headkv, prompts, budget=budget, **limits)
        assert given == expected
        return given


@pytest.fixture
def pair(engines: Engines) -> Pair:
    pair = Pair(
        engines.stock(block_size=BLOCK_SIZE), engines.headkv(SETTINGS, block_size=BLOCK_SIZE)
    )
    pair.reset()
    return pair


@pytest.mark.parametrize("budget", [None, 0], ids=["budget above all prompts", "budget 0"])
@pytest.mark.parametrize("chunk", [None, CHUNK], ids=["one chunk", "chunks of 256"])
def test_a_mixed_batch(pair: Pair, chunk: int | None, budget: int | None) -> None:
    given = pair.ask(PROMPTS, budget, chunk=chunk)
    assert [len(answer.token_ids) for answer in given] == [24] * len(PROMPTS)


@pytest.mark.parametrize("chunk", [None, CHUNK], ids=["one chunk", "chunks of 256"])
def test_prompts_sent_twice_and_prompts_that_go_on(pair: Pair, chunk: int | None) -> None:
    first = pair.ask(PROMPTS, chunk=chunk)
    again = pair.ask(PROMPTS, chunk=chunk)
    assert [a.token_ids for a in again] == [a.token_ids for a in first]
    longer = [
        [*prompt, *answer.token_ids, *random_prompt(50, seed=1)]
        for prompt, answer in zip(PROMPTS, first, strict=True)
    ]
    after = pair.ask(longer, chunk=chunk)
    for prompt, twice, extended in zip(PROMPTS, again, after, strict=True):
        hit = (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert twice.num_cached_tokens == hit
        assert extended.num_cached_tokens >= len(prompt) // BLOCK_SIZE * BLOCK_SIZE


def test_a_budget_below_them_changes_answers(pair: Pair) -> None:
    """Shows that the comparison sees compression."""
    long = [prompt for prompt in PROMPTS if len(prompt) > 500]
    stock = answers(pair.stock, long)
    compressed = answers(pair.headkv, long, budget=64)
    assert all(a.logprobs != b.logprobs for a, b in zip(stock, compressed, strict=True))


@pytest.mark.parametrize("chunk", [None, CHUNK], ids=["one chunk", "chunks of 256"])
def test_requests_that_end_before_they_are_compressed(pair: Pair, chunk: int | None) -> None:
    """They hold compressed blocks from the start, for they may generate 400 tokens and do not."""
    prompts = [needle_prompt(length, seed=length) for length in (100, 257, 300, 417)]
    own = {"headkv_budget": 250, "headkv_compress_every": 64}
    for num_cached in (0, 1):  # and again, with prefix hits
        expected = pair.stock.call(inside.answer, prompts, 400, logprobs=1, chunk=chunk)
        given = pair.headkv.call(
            inside.answer, prompts, 400, own=[own] * len(prompts), logprobs=1, chunk=chunk
        )
        assert given == expected
        assert all(answer.num_cached_tokens >= 96 * num_cached for answer in given)
    # 2 * 7 blocks of 32 tokens and a window come first. One answer would reach that.
    assert all(len(p) + len(a.token_ids) < 456 for p, a in zip(prompts, given, strict=True))


@pytest.fixture
def two_ranks() -> Iterator[Pair]:
    started = []
    try:
        for ours in (
            {"attention_backend": "CPU_ATTN"},
            {"attention_backend": "HEADKV", "additional_config": {"headkv": SETTINGS}},
        ):
            arguments = {**COMMON, "block_size": BLOCK_SIZE, "tensor_parallel_size": 2, **ours}
            arguments["model"] = str(checkpoint_path())
            started.append(EngineProcess({"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, **arguments))
        yield Pair(*started)
    finally:
        for engine in started:
            engine.stop()


@pytest.mark.slow
def test_two_tensor_parallel_ranks(two_ranks: Pair) -> None:
    two_ranks.ask(PROMPTS)
    again = two_ranks.ask(PROMPTS, chunk=CHUNK)
    assert any(answer.num_cached_tokens for answer in again)
