# SPDX-License-Identifier: Apache-2.0
"""Functions that tests run inside an engine's process; see `engine_process`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TokenIds = list[int]


@dataclass(frozen=True)
class Pool:
    """vLLM's block pool: counts exclude the null block. usage: vLLM's own kv_cache_usage."""

    total: int
    free: int
    usage: float


def generate(
    llm: Any,
    prompts: Sequence[TokenIds | str],
    max_tokens: int = 32,
    priorities: list[int] | None = None,
    **parameters: Any,
) -> list[TokenIds]:
    """Greedy tokens for each prompt, all sent at once. Checks the pool before and after.

    priorities: of the requests, for the engine's policy `priority`; lower ones are served first.
    """
    from vllm import SamplingParams

    inputs = [
        prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt in prompts
    ]
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, **parameters)
    check_integrity(llm)
    outputs = llm.generate(inputs, sampling, use_tqdm=False, priority=priorities)
    check_integrity(llm)
    assert_pool_is_whole(llm)
    return [list(output.outputs[0].token_ids) for output in outputs]


def scheduler(llm: Any) -> Any:
    """The engine's scheduler."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def pool(llm: Any) -> Pool:
    """The state of vLLM's block pool."""
    manager = scheduler(llm).kv_cache_manager
    block_pool = manager.block_pool
    return Pool(block_pool.num_gpu_blocks - 1, block_pool.get_num_free_blocks(), manager.usage)


def assert_pool_is_whole(llm: Any) -> None:
    """With no request left, every block is free again."""
    state = pool(llm)
    assert state.free == state.total
    assert state.usage == 0


def check_integrity(llm: Any) -> None:
    """The scheduler's own invariants, where it has some (stock vLLM's has none)."""
    check = getattr(scheduler(llm), "check_integrity", None)
    if check is not None:
        check()


def words(llm: Any, token_ids: TokenIds) -> list[str]:
    """The text of each token."""
    return [llm.get_tokenizer().decode([token_id]).strip() for token_id in token_ids]


def reset_prefix_cache(llm: Any) -> bool:
    """Forget all prefix hits."""
    return bool(llm.reset_prefix_cache())


@dataclass(frozen=True)
class Answer:
    """One request's greedy answer.

    logprobs: for each step that of the likeliest tokens, by token id; empty when not asked for.
    num_cached_tokens: prompt tokens that the prefix cache served.
    """

    token_ids: TokenIds
    text: str
    logprobs: list[dict[int, float]]
    num_cached_tokens: int


def answer(
    llm: Any,
    prompts: Sequence[TokenIds | str],
    max_tokens: int = 32,
    budget: int | None = None,
    chunk: int | None = None,
    own: Sequence[dict[str, Any]] | None = None,
    **parameters: Any,
) -> list[Answer]:
    """Greedy answers to all prompts, sent at once, perhaps within other limits than the engine's.

    budget: of these requests. own: each one's own arguments in place of that. chunk: the tokens of
    a step at most.
    """
    from vllm import SamplingParams

    inputs = [
        prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt in prompts
    ]
    same = {} if budget is None else {"headkv_budget": budget}
    sampling = [
        SamplingParams(temperature=0, max_tokens=max_tokens, extra_args=arguments, **parameters)
        for arguments in own or [same] * len(prompts)
    ]
    with _steps_of(llm, chunk):
        outputs = llm.generate(inputs, sampling, use_tqdm=False)
    check_integrity(llm)
    return [_answer(output) for output in outputs]


@contextmanager
def _steps_of(llm: Any, chunk: int | None) -> Iterator[None]:
    engine_scheduler = scheduler(llm)
    before = engine_scheduler.max_num_scheduled_tokens
    engine_scheduler.max_num_scheduled_tokens = chunk or before
    try:
        yield
    finally:
        engine_scheduler.max_num_scheduled_tokens = before


def _answer(output: Any) -> Answer:
    (completion,) = output.outputs
    logprobs = [
        {token: entry.logprob for token, entry in step.items()}
        for step in completion.logprobs or ()
    ]
    return Answer(
        list(completion.token_ids), completion.text, logprobs, output.num_cached_tokens or 0
    )
