# SPDX-License-Identifier: Apache-2.0
"""Cases that broke similar systems, on one engine with a small pool: docs/known-cases.md."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from tests.engine.conftest import Engines
from tests.engine.helpers import inside
from tests.engine.helpers.inside import TokenIds
from tests.engine.helpers.prompts import needle_prompt

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {"budget": 128}
NUM_BLOCKS = 130  # of 16 tokens each
MAX_MODEL_LEN = 1952
"""The longest that vLLM takes at start-up with so many blocks: a prompt's compressed copy needs
some too."""
PROMPTS = [needle_prompt(900 + 13 * seed, seed=seed) for seed in range(4)]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}


def ask(
    llm: Any, prompts: list[TokenIds], priorities: list[int] | None = None, **asked: Any
) -> Any:
    """All answers to each prompt, and how often a request was preempted."""
    from vllm import SamplingParams

    before = _num_preemptions(llm)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(**{"temperature": 0, "max_tokens": 40, "ignore_eos": True, **asked}),
        use_tqdm=False,
        priority=priorities,
    )
    inside.check_integrity(llm)
    inside.assert_pool_is_whole(llm)
    answers = [[list(one.token_ids) for one in output.outputs] for output in outputs]
    return answers, _num_preemptions(llm) - before


def ask_for_one_of(llm: Any, prompts: list[TokenIds], texts: list[str]) -> Any:
    """The same, as structured output."""
    from vllm.sampling_params import StructuredOutputsParams

    choice = StructuredOutputsParams(choice=texts)
    return ask(llm, prompts, structured_outputs=choice, ignore_eos=False)


def words(llm: Any, token_ids: TokenIds) -> list[str]:
    return [llm.get_tokenizer().decode([token_id]).strip() for token_id in token_ids]


def ask_and_forget(llm: Any, prompt: TokenIds, num_steps: int) -> Any:
    """The answer; after `num_steps` steps the prefix cache is forgotten, while blocks are held."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    engine.add_request("forgetting", {"prompt_token_ids": prompt}, sampling)
    said: list[Any] = []
    for step in range(1000):
        if not engine.has_unfinished_requests():
            break
        if step == num_steps:
            llm.reset_prefix_cache()
            inside.check_integrity(llm)
        said = engine.step() or said
    inside.assert_pool_is_whole(llm)
    return list(said[-1].outputs[0].token_ids)


def prompt_logprobs(llm: Any, prompt: TokenIds) -> Any:
    """Of each token of the prompt, and how many of them the prefix cache served."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=0)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    found = [one and next(iter(one.values())).logprob for one in output.prompt_logprobs]
    return found, output.num_cached_tokens


def _num_preemptions(llm: Any) -> int:
    return sum(int(m.value) for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


SMALL = {
    "num_gpu_blocks_override": NUM_BLOCKS,
    "max_model_len": MAX_MODEL_LEN,
    "scheduling_policy": "priority",
    "disable_log_stats": False,
}


@pytest.fixture(scope="module")
def engine(engines: Engines) -> Iterator[EngineProcess]:
    running = engines.headkv(SETTINGS, **SMALL)
    yield running
    engines.end(running)


def test_requests_by_priority_in_a_small_pool(engine: EngineProcess) -> None:
    """Greedy ones: vLLM's CPU build ends when it preempts a request that has a seed."""
    asked = {"max_tokens": 160}
    alone = [engine.call(ask, [prompt], **asked)[0][0] for prompt in PROMPTS]
    assert engine.call(inside.reset_prefix_cache)
    together, _ = engine.call(ask, PROMPTS * 4, [*range(16, 0, -1)], **asked)
    assert together == alone * 4


@pytest.mark.parametrize("num_tokens", [MAX_MODEL_LEN - 1, MAX_MODEL_LEN - 2, MAX_MODEL_LEN - 20])
def test_a_prompt_that_fills_the_pool(engine: EngineProcess, num_tokens: int) -> None:
    prompt = needle_prompt(num_tokens, seed=1)
    (answers,), _ = engine.call(ask, [prompt], max_tokens=MAX_MODEL_LEN - num_tokens)
    assert [len(tokens) for tokens in answers] == [MAX_MODEL_LEN - num_tokens]
    (again,), _ = engine.call(ask, [prompt], max_tokens=MAX_MODEL_LEN - num_tokens)
    assert again == answers


def test_one_that_is_too_long_is_refused_and_the_next_is_served(engine: EngineProcess) -> None:
    with pytest.raises(RuntimeError, match="VLLMValidationError"):
        engine.call(ask, [needle_prompt(MAX_MODEL_LEN, seed=1)], max_tokens=1)
    assert len(engine.call(ask, PROMPTS[:1])[0]) == 1


def test_one_that_fills_the_pool_waits_for_others(engine: EngineProcess) -> None:
    """None of those that came before and after it waits for ever."""
    long = needle_prompt(MAX_MODEL_LEN - 40, seed=2)
    prompts = [*PROMPTS[:2], long, *PROMPTS[2:]]
    expected = [engine.call(ask, [prompt])[0][0] for prompt in prompts]
    assert engine.call(inside.reset_prefix_cache)
    assert engine.call(ask, prompts)[0] == expected


def test_structured_output_with_drafts_in_a_small_pool(engines: Engines) -> None:
    engine = engines.headkv(SETTINGS, speculative_config=NGRAM, **SMALL)
    try:
        choices = engine.call(words, PROMPTS[0][40:46])
        texts = [" ".join(choices[:n]) for n in (3, 4, 6)]
        alone = [engine.call(ask_for_one_of, [prompt], texts)[0][0] for prompt in PROMPTS]
        assert engine.call(inside.reset_prefix_cache)
        assert engine.call(ask_for_one_of, PROMPTS * 2, texts)[0] == alone * 2
    finally:
        engines.end(engine)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_prefix_cache_is_forgotten_while_one_decodes(
    engine: EngineProcess, num_steps: int
) -> None:
    (expected,), _ = engine.call(ask, PROMPTS[:1])
    assert engine.call(ask_and_forget, PROMPTS[0], num_steps) == expected[0]


def test_prompt_logprobs_after_a_prefix_hit(engine: EngineProcess) -> None:
    """vLLM computes the prompt again for them; the compressed cache is not read."""
    first, _ = engine.call(prompt_logprobs, PROMPTS[3])
    engine.call(ask, [PROMPTS[3]])
    second, _ = engine.call(prompt_logprobs, PROMPTS[3])
    assert second[1:] == pytest.approx(first[1:], abs=1e-4)
    assert first[0] is second[0] is None


def test_a_prompt_repeated_in_bfloat16(engines: Engines) -> None:
    engine = engines.headkv(SETTINGS, dtype="bfloat16", disable_log_stats=False)
    try:
        answers = [engine.call(ask, [PROMPTS[0]])[0] for _ in range(3)]
        assert answers[1] == answers[2]
        assert engine.call(ask, [PROMPTS[0]] * 3)[0] == [answers[2][0]] * 3
    finally:
        engines.end(engine)
