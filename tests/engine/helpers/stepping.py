# SPDX-License-Identifier: Apache-2.0
"""Functions that step an engine from inside its process, a call at a time; see `engine_process`."""

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.engine.helpers.inside import (
    TokenIds,
    assert_pool_is_whole,
    check_integrity,
    pool,
    scheduler,
)

_numbers = count()
_finished: dict[str, "Finished"] = {}
_occupied: list[Any] = []


@dataclass(frozen=True)
class Finished:
    """num_cached_tokens: prompt tokens that the prefix cache served."""

    token_ids: TokenIds
    text: str
    num_cached_tokens: int


@dataclass(frozen=True)
class Live:
    """A request in the scheduler. num_held: blocks of the pool in its rows."""

    running: bool
    num_computed_tokens: int
    num_held: int
    num_preemptions: int


def add(llm: Any, prompt: TokenIds | str, max_tokens: int = 32, **parameters: Any) -> str:
    """Queue a greedy request; returns its id."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    given = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}
    sampling = SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **parameters,
    )
    return str(engine.add_request(str(next(_numbers)), given, sampling))


def step(llm: Any) -> dict[str, Live]:
    """One step of the engine; returns the requests that are left, by id."""
    for output in llm.llm_engine.step():
        (answer,) = output.outputs
        _finished[output.request_id] = Finished(
            list(answer.token_ids), answer.text, output.num_cached_tokens
        )
    _check(llm)
    return live(llm)


def _check(llm: Any) -> None:
    # The scheduler knows nothing of blocks that a test has taken; `live` counts them.
    if not _occupied:
        check_integrity(llm)


def live(llm: Any) -> dict[str, Live]:
    """The scheduler's requests by id. Checks that their rows and the free list make up the pool."""
    running = {request.request_id for request in scheduler(llm).running}
    rows = defaultdict[str, set[int]](set)
    for manager in scheduler(llm).kv_cache_manager.coordinator.single_type_managers:
        for request_id, row in manager.req_to_blocks.items():
            rows[request_id] |= {block.block_id for block in row if not block.is_null}
    state = pool(llm)
    held = set[int]().union(*rows.values())
    assert len(held) + len(_occupied) + state.free == state.total
    return {
        request_id: Live(
            request_id in running,
            request.num_computed_tokens,
            len(rows.get(request_id, ())),
            request.num_preemptions,
        )
        for request_id, request in scheduler(llm).requests.items()
    }


def step_until_computed(llm: Any, request_id: str, num_tokens: int) -> Live:
    """Step until the request has had at least `num_tokens` tokens scheduled."""
    while (state := live(llm)[request_id]).num_computed_tokens < num_tokens:
        step(llm)
    return state


def step_until_preempted(llm: Any, limit: int = 500) -> int:
    """Step until a request is preempted; returns how many requests wait then."""
    for _ in range(limit):
        states = step(llm).values()
        if any(state.num_preemptions for state in states):
            return sum(not state.running for state in states)
    raise AssertionError(f"no preemption in {limit} steps")


def abort(llm: Any, request_id: str) -> None:
    """As vLLM's server does when a client goes away."""
    llm.llm_engine.abort_request([request_id], internal=True)


def drain(llm: Any) -> dict[str, Finished]:
    """Step until nothing is left, and the pool is whole. Returns what finished since last time."""
    while llm.llm_engine.has_unfinished_requests() or scheduler(llm).has_requests():
        step(llm)
    assert not _occupied
    check_integrity(llm)
    assert_pool_is_whole(llm)
    finished = dict(_finished)
    _finished.clear()
    return finished


def finish(llm: Any, requests: list[str]) -> list[TokenIds]:
    """Step to the end; the answers of `requests`, in this order."""
    finished = drain(llm)
    return [finished[request.split("-")[0]].token_ids for request in requests]


def most_running(llm: Any, prompts: list[TokenIds], max_tokens: int) -> tuple[int, int]:
    """Send all at once and run to the end: the most that ran in one step, and all preemptions."""
    for prompt in prompts:
        add(llm, prompt, max_tokens, ignore_eos=True)
    most, preemptions = 0, dict[str, int]()
    while states := step(llm):
        most = max(most, sum(state.running for state in states.values()))
        preemptions |= {name: state.num_preemptions for name, state in states.items()}
    drain(llm)
    return most, sum(preemptions.values())


def occupy(llm: Any, num_left: int) -> None:
    """Take all free blocks but `num_left` out of the pool, and out of the prefix cache."""
    block_pool = scheduler(llm).kv_cache_manager.block_pool
    _occupied.extend(block_pool.get_new_blocks(block_pool.get_num_free_blocks() - num_left))


def vacate(llm: Any) -> None:
    """Give back what `occupy` took."""
    scheduler(llm).kv_cache_manager.block_pool.free_blocks(_occupied)
    _occupied.clear()


def preempt_all(llm: Any, forget: bool) -> None:
    """Preempt all running requests; `forget`: and all that the prefix cache holds."""
    engine_scheduler = scheduler(llm)
    if forget:
        assert engine_scheduler.reset_prefix_cache(reset_running_requests=True)
        return
    while engine_scheduler.running:
        request = engine_scheduler.running.pop()
        engine_scheduler._preempt_request(request, time.monotonic(), drop_stale_output=True)
    engine_scheduler.prev_step_scheduled_req_ids.clear()


def limit_steps(llm: Any, num_tokens: int) -> int:
    """Let no step compute more tokens; returns how many it was before."""
    engine_scheduler = scheduler(llm)
    before: int = engine_scheduler.max_num_scheduled_tokens
    engine_scheduler.max_num_scheduled_tokens = num_tokens
    return before
