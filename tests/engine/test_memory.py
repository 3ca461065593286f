# SPDX-License-Identifier: Apache-2.0
"""Compression frees blocks of vLLM's own pool, and all come back however a request ends."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.budgets.request import RequestBudget, request_budget
from headkv_vllm.config import Settings
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from headkv_vllm.needle.vocabulary import SPECIAL_WORDS, WORDS
from tests.engine.conftest import COMMON
from tests.engine.helpers import inside, stepping
from tests.engine.helpers.inside import TokenIds

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SETTINGS = {"keep_ratio": 1 / 8}
BLOCK_SIZE = 32  # the smallest that stock vLLM's CPU backend takes
CHUNK = 1024
NUM_BLOCKS = 400
POOL = {
    "block_size": BLOCK_SIZE,
    "num_gpu_blocks_override": NUM_BLOCKS + 1,  # one is vLLM's null block
    "max_num_seqs": 128,
    "max_num_batched_tokens": CHUNK,
}
EMPTY = inside.Pool(total=NUM_BLOCKS, free=NUM_BLOCKS, usage=0)


def start(**arguments: Any) -> EngineProcess:
    return EngineProcess(**{"model": str(checkpoint_path()), **COMMON, **POOL, **arguments})


@pytest.fixture(scope="module")
def headkv() -> Iterator[EngineProcess]:
    engine = start(attention_backend="HEADKV", additional_config={"headkv": SETTINGS})
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def stock() -> Iterator[EngineProcess]:
    engine = start(attention_backend="CPU_ATTN")
    yield engine
    engine.stop()


@pytest.fixture(autouse=True)
def _clean(headkv: EngineProcess) -> Iterator[None]:
    """Every test starts with no prefix hits and ends with a whole pool."""
    assert headkv.call(inside.reset_prefix_cache)
    yield
    headkv.call(stepping.drain)


def prompts(number: int, num_tokens: int, seed: int = 0) -> list[TokenIds]:
    """Random words, so that no two prompts share a block."""
    rng = random.Random(seed)
    words = range(len(SPECIAL_WORDS), len(WORDS))
    return [rng.choices(words, k=num_tokens) for _ in range(number)]


def num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def budget(num_prompt_tokens: int) -> RequestBudget:
    return request_budget(Settings.parse(SETTINGS), num_prompt_tokens, BLOCK_SIZE)


def test_a_request_holds_its_compressed_blocks_and_the_blocks_from_f_on(
    headkv: EngineProcess,
) -> None:
    (prompt,) = prompts(1, 2000)
    plan = budget(2000)
    assert (plan.num_compressed_blocks, plan.num_full_blocks) == (7, 62)
    assert headkv.call(inside.pool) == EMPTY

    request = headkv.call(stepping.add, prompt, 64, ignore_eos=True)
    held: dict[int, int] = {}
    while state := headkv.call(stepping.step).get(request):
        pool = headkv.call(inside.pool)
        held[state.num_computed_tokens] = state.num_held
        assert pool.free == NUM_BLOCKS - state.num_held
        assert pool.usage == pytest.approx(state.num_held / NUM_BLOCKS)

    during_prefill = {t: blocks for t, blocks in held.items() if t <= 2000}
    assert during_prefill == {t: 7 + num_blocks(t) for t in (CHUNK, 2000)}
    in_decode = {t: blocks for t, blocks in held.items() if t > 2000}
    assert in_decode == {t: 7 + num_blocks(t) - 62 for t in range(2001, 2063)}
    assert headkv.call(inside.pool) == EMPTY


@pytest.mark.slow
def test_four_times_as_many_requests_run_at_once(
    headkv: EngineProcess, stock: EngineProcess
) -> None:
    sent = prompts(28, 2000)
    most_of_stock, _ = stock.call(stepping.most_running, sent[:10], max_tokens=16)
    most, preemptions = headkv.call(stepping.most_running, sent, max_tokens=70)
    assert most_of_stock == NUM_BLOCKS // num_blocks(2000) == 6
    assert most >= 4 * most_of_stock
    assert preemptions == 0


def test_a_short_prompt_is_left_alone(headkv: EngineProcess, stock: EngineProcess) -> None:
    (prompt,) = prompts(1, 71)
    assert not budget(71).compressed
    for engine in (headkv, stock):
        request = engine.call(stepping.add, prompt, 40, ignore_eos=True)
        assert engine.call(stepping.step_until_computed, request, 98).num_held == num_blocks(98)
    compressed, whole = (engine.call(stepping.drain) for engine in (headkv, stock))
    assert [f.token_ids for f in compressed.values()] == [f.token_ids for f in whole.values()]


@pytest.mark.parametrize(
    "num_computed",
    [0, CHUNK, 2 * CHUNK, 2600, 2601, 2630],
    ids=["waiting", "first chunk", "second chunk", "prompt step", "first decode step", "decode"],
)
def test_an_aborted_request_gives_everything_back(headkv: EngineProcess, num_computed: int) -> None:
    (aborted,), (kept,) = prompts(1, 2600), prompts(1, 600)
    alone = headkv.call(inside.generate, [kept], 40)
    headkv.call(inside.reset_prefix_cache)

    first = headkv.call(stepping.add, aborted, 100, ignore_eos=True)
    second = headkv.call(stepping.add, kept, 40)
    state = headkv.call(stepping.step_until_computed, first, num_computed)
    assert state.num_computed_tokens == num_computed
    headkv.call(stepping.abort, first)
    assert first not in headkv.call(stepping.live)
    finished = headkv.call(stepping.drain)
    assert [finished[name].token_ids for name in finished if second.startswith(name)] == alone


def test_a_request_aborted_in_a_full_pool_held_nothing(headkv: EngineProcess) -> None:
    (prompt,) = prompts(1, 2000)
    needed = budget(2000).num_compressed_blocks + num_blocks(CHUNK)
    headkv.call(stepping.occupy, needed - 1)
    request = headkv.call(stepping.add, prompt)
    for _ in range(3):
        state = headkv.call(stepping.step)[request]
    assert (state.running, state.num_held) == (False, 0)
    headkv.call(stepping.abort, request)
    headkv.call(stepping.vacate)


def test_a_preempted_request_gives_everything_back_and_answers_the_same(
    headkv: EngineProcess,
) -> None:
    sent = prompts(2, 1000)
    alone = [headkv.call(inside.generate, [prompt], 80, ignore_eos=True)[0] for prompt in sent]
    headkv.call(inside.reset_prefix_cache)

    for prompt in sent:
        request = headkv.call(stepping.add, prompt, 80, ignore_eos=True)
    headkv.call(stepping.step_until_computed, request, 1020)
    headkv.call(stepping.occupy, 0)
    assert headkv.call(stepping.step_until_preempted) == 1
    headkv.call(stepping.vacate)
    finished = headkv.call(stepping.drain)
    assert [answer.token_ids for answer in finished.values()] == alone


@pytest.mark.parametrize(
    ("num_tokens", "parameters"),
    [(5000, {}), (1000, {"max_tokens": -1}), (1000, {"logprobs": 10_000}), (0, {})],
    ids=["too long", "bad max_tokens", "too many logprobs", "empty"],
)
def test_a_rejected_request_takes_nothing(
    headkv: EngineProcess, num_tokens: int, parameters: dict[str, Any]
) -> None:
    (prompt,) = prompts(1, num_tokens)
    with pytest.raises(RuntimeError, match=r"ValueError|VLLMValidationError"):
        headkv.call(stepping.add, prompt, **parameters)
    assert headkv.call(stepping.live) == {}
    assert headkv.call(inside.pool).free == NUM_BLOCKS


def test_requests_of_all_kinds_end_in_a_whole_pool(headkv: EngineProcess) -> None:
    rng = random.Random(5)
    lengths = [rng.choice((1, 31, 32, 33, 200, 1023, 1024, 1025, 1500, 2600)) for _ in range(40)]
    live = {}
    for index, length in enumerate(lengths):
        (prompt,) = prompts(1, length, seed=index)
        headkv.call(stepping.add, prompt, rng.randint(1, 40))
        live = headkv.call(stepping.step)
        if live and rng.random() < 0.3:
            headkv.call(stepping.abort, rng.choice(sorted(live)))
    assert live
    headkv.call(stepping.drain)


class TestPrefixCache:
    """Two questions about one document of 1,500 tokens."""

    def questions(self) -> tuple[str, str]:
        (sample,) = generate_samples("multi-query", 1500, 1, seed=11)
        document = sample.prompt.split()[: -len(sample.keys) - 2]
        first, second, *_ = (" ".join([*document, "?", key, ":"]) for key in sample.keys)
        return first, second

    def ask(self, engine: EngineProcess, question: str) -> stepping.Finished:
        engine.call(stepping.add, question, 8)
        finished: dict[str, stepping.Finished] = engine.call(stepping.drain)
        return finished.popitem()[1]

    def test_serves_the_document_after_its_blocks_were_freed(self, headkv: EngineProcess) -> None:
        first, second = self.questions()
        num_prompt_tokens = len(second.split()) + 1
        fresh = self.ask(headkv, second)
        assert fresh.num_cached_tokens == 0
        headkv.call(inside.reset_prefix_cache)

        assert self.ask(headkv, first).num_cached_tokens == 0
        again = self.ask(headkv, second)
        assert again.num_cached_tokens == budget(num_prompt_tokens).num_full_blocks * BLOCK_SIZE
        assert again.token_ids == fresh.token_ids

    def test_serves_a_request_that_comes_while_the_first_is_in_decode(
        self, headkv: EngineProcess
    ) -> None:
        first, second = self.questions()
        num_prompt_tokens = len(second.split()) + 1
        num_full_blocks = budget(num_prompt_tokens).num_full_blocks
        fresh = self.ask(headkv, second)
        headkv.call(inside.reset_prefix_cache)

        request = headkv.call(stepping.add, first, 200, ignore_eos=True)
        headkv.call(stepping.step_until_computed, request, num_prompt_tokens + 10)
        later = headkv.call(stepping.add, second, 8)
        while later in (states := headkv.call(stepping.step)):
            pass
        assert states[request].num_computed_tokens < num_prompt_tokens + 100
        finished = headkv.call(stepping.drain)
        (again,) = (answer for name, answer in finished.items() if later.startswith(name))
        assert again.num_cached_tokens == num_full_blocks * BLOCK_SIZE
        assert again.token_ids == fresh.token_ids

    def test_forgets_blocks_that_others_took(self, headkv: EngineProcess) -> None:
        _, second = self.questions()
        fresh = self.ask(headkv, second)
        headkv.call(stepping.occupy, 0)
        headkv.call(stepping.vacate)
        again = self.ask(headkv, second)
        assert again.num_cached_tokens == 0
        assert again.token_ids == fresh.token_ids
