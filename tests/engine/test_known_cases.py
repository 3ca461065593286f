# SPDX-License-Identifier: Apache-2.0
"""Cases that broke similar systems, most of them in a small pool: docs/known-cases.md."""

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from benchmarks.harness.engine_process import EngineProcess
from tests.engine.conftest import Engines
from tests.engine.helpers import inside, stepping
from tests.engine.helpers.inside import TokenIds
from tests.engine.helpers.prompts import needle_prompt

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {"budget": 128}
MAX_MODEL_LEN = 1952
"""The longest for 130 blocks of 16 tokens. A prompt's compressed copy needs some of them."""
SMALL = {
    "num_gpu_blocks_override": 130,
    "max_model_len": MAX_MODEL_LEN,
    "scheduling_policy": "priority",
}
PROMPTS = [needle_prompt(900 + 13 * seed, seed=seed) for seed in range(4)]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}


@pytest.fixture(scope="module")
def engine(engines: Engines) -> Iterator[EngineProcess]:
    running = engines.headkv(SETTINGS, **SMALL)
    yield running
    engines.end(running)


def alone(
    engine: EngineProcess, prompts: list[TokenIds], max_tokens: int, **parameters: Any
) -> list[TokenIds]:
    """The answer to each prompt when no other is asked. Prefix hits are forgotten then."""
    answers = [engine.call(inside.generate, [p], max_tokens, **parameters)[0] for p in prompts]
    assert engine.call(inside.reset_prefix_cache)
    return answers


def test_requests_by_priority_in_a_small_pool(engine: EngineProcess) -> None:
    """Not all fit at once. The last is the most urgent."""
    expected = alone(engine, PROMPTS, 160, ignore_eos=True)
    asked = {"priorities": [*range(16, 0, -1)], "ignore_eos": True}
    assert engine.call(inside.generate, PROMPTS * 4, 160, **asked) == expected * 4


@pytest.mark.parametrize("num_tokens", [MAX_MODEL_LEN - 1, MAX_MODEL_LEN - 2, MAX_MODEL_LEN - 20])
def test_a_prompt_that_fills_the_pool(engine: EngineProcess, num_tokens: int) -> None:
    prompts, room = [needle_prompt(num_tokens, seed=1)], MAX_MODEL_LEN - num_tokens
    answers = engine.call(inside.generate, prompts, room, ignore_eos=True)
    assert [len(tokens) for tokens in answers] == [room]
    assert engine.call(inside.generate, prompts, room, ignore_eos=True) == answers


def test_one_that_is_too_long_is_refused_and_the_next_is_served(engine: EngineProcess) -> None:
    with pytest.raises(RuntimeError, match="VLLMValidationError"):
        engine.call(inside.generate, [needle_prompt(MAX_MODEL_LEN, seed=1)], 1)
    assert len(engine.call(inside.generate, PROMPTS[:1])) == 1


def test_one_that_fills_the_pool_waits_for_others(engine: EngineProcess) -> None:
    """Neither it nor one that came before or after it waits for ever."""
    long = needle_prompt(MAX_MODEL_LEN - 40, seed=2)
    prompts = [*PROMPTS[:2], long, *PROMPTS[2:]]
    expected = alone(engine, prompts, 40, ignore_eos=True)
    assert engine.call(inside.generate, prompts, 40, ignore_eos=True) == expected


def test_structured_output_with_drafts_in_a_small_pool(engines: Engines) -> None:
    engine = engines.headkv(SETTINGS, speculative_config=NGRAM, **SMALL)
    try:
        choices = engine.call(inside.words, PROMPTS[0][40:46])
        texts = [" ".join(choices[:n]) for n in (3, 4, 6)]
        asked = {"structured_outputs": StructuredOutputsParams(choice=texts)}
        expected = alone(engine, PROMPTS, 40, **asked)
        assert engine.call(inside.generate, PROMPTS * 2, 40, **asked) == expected * 2
    finally:
        engines.end(engine)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_prefix_cache_is_not_forgotten_while_one_decodes(
    engine: EngineProcess, num_steps: int
) -> None:
    """vLLM refuses it while a request holds blocks, and the request goes on."""
    expected = alone(engine, PROMPTS[:1], 40, ignore_eos=True)
    engine.call(stepping.add, PROMPTS[0], 40, ignore_eos=True)
    for _ in range(num_steps):
        engine.call(stepping.step)
    assert not engine.call(inside.reset_prefix_cache)
    finished = engine.call(stepping.drain)
    assert [one.token_ids for one in finished.values()] == expected


def prompt_logprobs(llm: Any, prompt: TokenIds) -> list[float]:
    """Of each token of the prompt but the first."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=0)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    return [next(iter(one.values())).logprob for one in output.prompt_logprobs[1:]]


def test_prompt_logprobs_after_a_prefix_hit(engine: EngineProcess) -> None:
    """vLLM computes the prompt again for them. It does not read the compressed cache."""
    first = engine.call(prompt_logprobs, PROMPTS[3])
    engine.call(inside.generate, PROMPTS[3:])
    assert engine.call(prompt_logprobs, PROMPTS[3]) == pytest.approx(first, abs=1e-4)


def test_a_prompt_repeated_in_bfloat16(engines: Engines) -> None:
    engine = engines.headkv(SETTINGS, dtype="bfloat16")
    try:
        asked = (inside.generate, PROMPTS[:1], 40)
        _, second, third = (engine.call(*asked, ignore_eos=True)[0] for _ in range(3))
        assert second == third
        together = engine.call(inside.generate, PROMPTS[:1] * 3, 40, ignore_eos=True)
        assert together == [third] * 3
    finally:
        engines.end(engine)
