# SPDX-License-Identifier: Apache-2.0
"""A compressed request's answer depends on its prompt alone: not on how or beside what it ran."""

from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.resources import scores_dir
from tests.engine.conftest import COMMON, Engines
from tests.engine.helpers import inside, stepping
from tests.engine.helpers.inside import TokenIds
from tests.engine.helpers.prompts import needle_prompt, random_prompt

pytestmark = pytest.mark.engine

SETTINGS = {
    "headkv": {"budget": 128, "scores": str(scores_dir() / "needle.json")},
    "adakv, compressed again": {"budget": 128, "policy": "adakv", "compress_every": 16},
}
BLOCK_SIZE = COMMON["block_size"]
NUM_STEPS = 40
# Cut into chunks of 64 or 256, these would end in a chunk of one token, fewer than the window.
LENGTHS = (513, 769, 1025, 1281, 2049)
PROMPTS = [needle_prompt(length, seed=length) for length in LENGTHS]
OTHERS = [random_prompt(length, seed=length) for length in (1, 30, 90, 257, 600, 1000, 1500, 3000)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SETTINGS["headkv"], id="headkv"),
        pytest.param(
            SETTINGS["adakv, compressed again"], id="compressed again", marks=pytest.mark.slow
        ),
    ],
)
def engine(engines: Engines, request: pytest.FixtureRequest) -> EngineProcess:
    """One policy whose budgets the scores decide, and one where each prompt has a say, whose
    requests are compressed again while they generate."""
    return engines.headkv(request.param)


@pytest.fixture(scope="module")
def alone(engine: EngineProcess) -> list[TokenIds]:
    """Each prompt's answer: sent alone, read at once, without prefix hits."""
    return [fresh(engine, [prompt])[0] for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _clean(engine: EngineProcess, alone: list[TokenIds]) -> None:
    """No prefix hits, nothing left over from a test that failed, and the worker's books whole."""
    engine.call(stepping.vacate)
    engine.call(stepping.drain)
    assert engine.call(inside.reset_prefix_cache)
    engine.call(check_worker)


def check_worker(llm: Any) -> None:
    """What live requests' prompts have decided, where they do."""
    llm.collective_rpc(_check_adaptive_allocations)


def compresses_again(llm: Any) -> bool:
    return bool(inside.scheduler(llm)._settings.compress_every)


def _check_adaptive_allocations(worker: Any) -> None:
    ((group,),) = worker.model_runner.attn_groups
    layers = group.get_metadata_builder()._layers
    adaptive = layers.allocations.adaptive
    adaptive.check_integrity()
    assert len(adaptive) > 0 or not POLICIES[layers.settings.policy].adaptive


def answers(
    engine: EngineProcess, prompts: list[TokenIds], chunk: int | None = None
) -> list[TokenIds]:
    given = engine.call(inside.answer, prompts, NUM_STEPS, chunk=chunk, ignore_eos=True)
    return [answer.token_ids for answer in given]


def fresh(engine: EngineProcess, prompts: list[TokenIds]) -> list[TokenIds]:
    assert engine.call(inside.reset_prefix_cache)
    return answers(engine, prompts)


def test_answers_are_those_of_compressed_prompts(
    engine: EngineProcess, alone: list[TokenIds]
) -> None:
    """Shows that the other tests compare what compression has changed."""
    whole = engine.call(inside.answer, PROMPTS, NUM_STEPS, budget=0, ignore_eos=True)
    assert sum(answer.token_ids != tokens for answer, tokens in zip(whole, alone, strict=True)) > 1


@pytest.mark.parametrize("chunk", [64, 256, 2048])
def test_in_chunks(engine: EngineProcess, alone: list[TokenIds], chunk: int) -> None:
    for prompt, expected in zip(PROMPTS, alone, strict=True):
        assert answers(engine, [prompt], chunk) == [expected]


@pytest.mark.parametrize("chunk", [None, 64])
def test_sent_again(engine: EngineProcess, alone: list[TokenIds], chunk: int | None) -> None:
    assert answers(engine, PROMPTS) == alone
    again = engine.call(inside.answer, PROMPTS, NUM_STEPS, chunk=chunk, ignore_eos=True)
    assert [answer.token_ids for answer in again] == alone
    # All blocks before the window are hit, and no more.
    expected = [(length - 8) // BLOCK_SIZE * BLOCK_SIZE for length in LENGTHS]
    assert [answer.num_cached_tokens for answer in again] == expected


@pytest.mark.slow
def test_after_a_shorter_and_a_longer_prompt(engine: EngineProcess) -> None:
    """The window of the middle one lies in blocks that the longest one has cached."""
    longest = needle_prompt(1200, seed=3)
    for length in (1000, 1007, 1008, 1015):
        middle = longest[:length]
        (expected,) = fresh(engine, [middle])
        for first in (longest[:900], longest):
            fresh(engine, [first])
            assert answers(engine, [middle]) == [expected]


def test_among_others(engine: EngineProcess, alone: list[TokenIds]) -> None:
    mixed = [*OTHERS[:4], *PROMPTS, *OTHERS[4:]]
    for chunk in (None, 512):
        given = answers(engine, mixed, chunk)
        assert given[4 : 4 + len(PROMPTS)] == alone
        assert engine.call(inside.reset_prefix_cache)


def test_in_another_order(engine: EngineProcess, alone: list[TokenIds]) -> None:
    assert answers(engine, PROMPTS[::-1]) == alone[::-1]


def test_arriving_one_after_another(engine: EngineProcess, alone: list[TokenIds]) -> None:
    """Each comes while those before it decode."""
    requests = []
    for prompt, other in zip(PROMPTS, OTHERS, strict=False):
        requests.append(engine.call(stepping.add, prompt, NUM_STEPS, ignore_eos=True))
        engine.call(stepping.add, other, 12)
        for _ in range(3):
            engine.call(stepping.step)
    assert engine.call(stepping.finish, requests) == alone


@pytest.mark.parametrize("forget", [True, False], ids=["nothing cached", "prompt cached"])
@pytest.mark.parametrize("num_generated", [(1,), (2, 20), (17, 18, 35)], ids=str)
def test_preempted_in_decode(
    engine: EngineProcess, alone: list[TokenIds], num_generated: tuple[int, ...], forget: bool
) -> None:
    requests = [engine.call(stepping.add, p, NUM_STEPS, ignore_eos=True) for p in PROMPTS]
    for times, count in enumerate(num_generated, 1):
        engine.call(stepping.step_until_computed, requests[-1], LENGTHS[-1] + count)
        engine.call(stepping.preempt_all, forget)
        states = engine.call(stepping.live)
        assert [states[request].num_preemptions for request in requests] == [times] * len(requests)
    assert engine.call(stepping.finish, requests) == alone


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [64, 256])
def test_resumed_in_chunks(engine: EngineProcess, alone: list[TokenIds], chunk: int) -> None:
    """A chunk may then begin in the prompt and end among the generated tokens."""
    for prompt, expected in zip(PROMPTS, alone, strict=True):
        request = engine.call(stepping.add, prompt, NUM_STEPS, ignore_eos=True)
        engine.call(stepping.step_until_computed, request, len(prompt) + 30)
        engine.call(stepping.preempt_all, True)
        with_chunks = engine.call(stepping.limit_steps, chunk)
        given = engine.call(stepping.finish, [request])
        engine.call(stepping.limit_steps, with_chunks)
        assert given == [expected]


def test_preempted_in_prefill(engine: EngineProcess, alone: list[TokenIds]) -> None:
    before = engine.call(stepping.limit_steps, 300)
    requests = [engine.call(stepping.add, p, NUM_STEPS, ignore_eos=True) for p in PROMPTS]
    for _ in range(4):
        for _ in range(2):
            engine.call(stepping.step)
        engine.call(stepping.preempt_all, False)
    given = engine.call(stepping.finish, requests)
    engine.call(stepping.limit_steps, before)
    assert given == alone


def test_preempted_after_its_answer_was_cached_as_part_of_a_prompt(
    engine: EngineProcess, alone: list[TokenIds]
) -> None:
    """The longer prompt's blocks hold exact keys; the answer's own are of the compressed cache."""
    longer = [
        [*prompt, *answer, *random_prompt(40, seed=2)]
        for prompt, answer in zip(PROMPTS, alone, strict=True)
    ]
    answers(engine, longer)
    requests = [engine.call(stepping.add, p, NUM_STEPS, ignore_eos=True) for p in PROMPTS]
    engine.call(stepping.step_until_computed, requests[-1], LENGTHS[-1] + 36)
    engine.call(stepping.preempt_all, False)
    assert engine.call(stepping.finish, requests) == alone


@pytest.mark.slow
def test_preempted_by_a_full_pool(engine: EngineProcess) -> None:
    """vLLM preempts by itself: there is room for all prompts, but not for all they generate."""
    prompts = [needle_prompt(513, seed=seed) for seed in range(8)]
    expected = [engine.call(inside.generate, [p], 90, ignore_eos=True)[0] for p in prompts]
    assert engine.call(inside.reset_prefix_cache)
    # Each holds 7 compressed blocks, the last one of its prompt and up to 6 of its answer.
    engine.call(stepping.occupy, 106)
    requests = [engine.call(stepping.add, p, 90, ignore_eos=True) for p in prompts]
    num_preemptions = 0
    while states := engine.call(stepping.step):
        preempted = sum(state.num_preemptions for state in states.values())
        num_preemptions = max(num_preemptions, preempted)
    engine.call(stepping.vacate)
    # What is compressed again does not outgrow the pool.
    assert (num_preemptions > 0) == (not engine.call(compresses_again))
    assert engine.call(stepping.finish, requests) == expected
