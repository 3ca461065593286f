# SPDX-License-Identifier: Apache-2.0
"""Functions that run inside an engine's process; see `engine_process`. Times are in seconds."""

import random
import time
from itertools import count
from typing import Any

_numbers = count()
_times: list[float] = []
_unstarted: set[str] = set()
"""The names of requests that have no token yet."""


def core(llm: Any) -> Any:
    """The engine core. Its step schedules, runs the model and processes the results."""
    return llm.llm_engine.engine_core.engine_core


def add_requests(
    llm: Any,
    num_requests: int,
    num_prompt_tokens: int,
    max_tokens: int,
    seed: int,
    asked: dict[str, Any] | None = None,
) -> None:
    """Queue requests with different random prompts. asked: `vllm_xargs`, as in HTTP bodies."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    vocabulary = random.Random(seed)
    sampling = SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=asked,
        output_kind=RequestOutputKind.DELTA,
    )
    for _ in range(num_requests):
        prompt = vocabulary.choices(range(3, 448), k=num_prompt_tokens)
        name = str(next(_numbers))
        llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        _unstarted.add(name)


def step(llm: Any) -> tuple[float, list[str]]:
    """One step of the engine core: its time, and the names of the requests that got tokens."""
    _time_steps(llm)
    outputs = llm.llm_engine.step()
    return _times.pop(), [output.request_id for output in outputs]


def prefill(llm: Any) -> float:
    """Step until every request has its first token. Returns the time of the steps."""
    total = 0.0
    while _unstarted:
        seconds, names = step(llm)
        total += seconds
        _unstarted.difference_update(names)
    return total


def decode(llm: Any, num_steps: int) -> list[float]:
    """The time of each of `num_steps` steps, in which every request gets a token."""
    num_requests = len(core(llm).scheduler.requests)
    times = []
    for _ in range(num_steps):
        seconds, names = step(llm)
        assert len(names) == num_requests, "a step skipped a request"
        times.append(seconds)
    return times


def run(llm: Any) -> float:
    """Step until every request has all its tokens. Returns the time of the steps."""
    total = 0.0
    while core(llm).scheduler.has_requests():
        total += step(llm)[0]
    _unstarted.clear()
    return total


def abort_all(llm: Any) -> None:
    """End every request, and forget all prompts."""
    llm.llm_engine.abort_request(list(core(llm).scheduler.requests), internal=True)
    while core(llm).scheduler.has_requests():
        llm.llm_engine.step()
    _unstarted.clear()
    assert llm.reset_prefix_cache()


def _time_steps(llm: Any) -> None:
    engine_core = core(llm)
    if hasattr(engine_core.step_fn, "is_timed"):
        return
    step_of_core = engine_core.step_fn

    def timed() -> Any:
        start = time.perf_counter()
        outputs = step_of_core()
        _times.append(time.perf_counter() - start)
        return outputs

    timed.is_timed = True  # type: ignore[attr-defined]
    engine_core.step_fn = timed
