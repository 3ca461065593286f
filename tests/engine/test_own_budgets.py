# SPDX-License-Identifier: Apache-2.0
"""Requests with budgets and policies of their own, on vLLM's real scheduler and block pool."""

import logging

import pytest

from headkv_vllm.budgets.policies import POLICIES
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model

SETTINGS = {"budget": 64, "window": 8}
"""K = 3 blocks of 16 for each prompt of at least 4 blocks and the window."""

PROMPT = [(7 * index + index // 5) % 128 for index in range(600)]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(settings, num_blocks=, in_flight=, **flags): an engine with an empty pool."""
    model = write_model(tmp_path_factory.mktemp("model"))

    def start(settings=SETTINGS, num_blocks=200, in_flight=1, **flags):
        every = {"max_num_batched_tokens": 2048, "max_num_seqs": 8, **flags}
        return BookkeepingEngine(engine_config(model, settings, **every), num_blocks, in_flight)

    return start


def header(engine, request_id):
    length, num_compressed, policy, _ = engine.worker.rows[request_id][:4]
    return length, num_compressed, list(POLICIES)[policy]


def skip_reason(engine, request_id):
    return engine.manager.budgets[request_id].skip_reason


ASKED = {
    "a": ({}, 3, "headkv", None),
    "b": ({"headkv_budget": 40}, 2, "headkv", None),
    "c": ({"headkv_keep_ratio": 0.5}, 8, "headkv", None),
    "d": ({"headkv_budget": 128, "headkv_policy": "adakv"}, 7, "adakv", None),
    "e": ({"headkv_budget": 0, "headkv_policy": "streaming"}, 0, "streaming", "off"),
    "f": ({"headkv_budget": 300}, 0, "headkv", "too_short"),
}


@pytest.mark.parametrize("in_flight", [1, 2])
def test_requests_of_one_step_have_budgets_and_policies_of_their_own(start, in_flight):
    engine = start(in_flight=in_flight, enable_prefix_caching=False)
    for name, (arguments, *_) in ASKED.items():
        engine.add(name, PROMPT[:300], max_tokens=20, **arguments)
    assert engine.step().num_scheduled_tokens == dict.fromkeys(ASKED, 300)
    for name, (_, num_compressed, policy, reason) in ASKED.items():
        assert header(engine, name) == (300, num_compressed, policy)
        assert skip_reason(engine, name) == reason
    engine.run()
    assert engine.num_free == 199


def test_a_preempted_request_keeps_its_own_budget(start):
    engine = start()
    engine.add("a", PROMPT[:300], max_tokens=60, headkv_budget=128, headkv_policy="pyramidkv")
    for _ in range(20):
        engine.step()
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert engine.step().scheduled_cached_reqs.resumed_req_ids == {"a"}
    assert header(engine, "a") == (300, 7, "pyramidkv")
    engine.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headkv_budget": -1}, "headkv_budget=-1 is not allowed"),
        ({"headkv_budgt": 64}, "unknown argument 'headkv_budgt'"),
    ],
)
def test_a_bad_argument_that_nobody_refused_leaves_the_servers_settings(
    start, arguments, message, caplog
):
    engine = start()
    with caplog.at_level(logging.WARNING):
        engine.add("a", PROMPT[:300], max_tokens=5, **arguments)
    assert f"request a uses the server's settings: {message}" in caplog.text
    engine.step()
    assert header(engine, "a") == (300, 3, "headkv")
    engine.run()


def test_a_prompt_that_grows_says_why_it_is_not_compressed(start):
    engine = start()
    engine.add("a", PROMPT[:200], max_tokens=8, resumable=True, headkv_budget=64)
    assert skip_reason(engine, "a") == "resumable"


@pytest.mark.parametrize(("num_blocks", "reason"), [(1 + 20 + 12, None), (20 + 12, "no_room")])
def test_what_the_whole_pool_could_not_hold_is_served_uncompressed(start, num_blocks, reason):
    """300 tokens and the 20 to come take 20 blocks; K = 12. One block is the null block."""
    engine = start(num_blocks=num_blocks)
    engine.add("a", PROMPT[:300], max_tokens=20, headkv_budget=200)
    engine.step()
    assert header(engine, "a")[1] == (0 if reason else 12)
    assert skip_reason(engine, "a") == reason
    engine.run()
    assert engine.num_free == num_blocks - 1


@pytest.mark.parametrize("in_flight", [1, 2])
def test_without_that_a_preempted_request_could_wait_for_ever(start, in_flight, monkeypatch):
    """Its prompt, what it has generated and its compressed blocks come to more than there is."""
    monkeypatch.setattr("headkv_vllm.engine.kv_cache_groups.Groups.can_hold", lambda *_: True)
    engine = start(num_blocks=33, in_flight=in_flight)
    engine.add("a", PROMPT[:300], max_tokens=200, headkv_budget=200)
    for _ in range(40):
        engine.step()
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    with pytest.raises(AssertionError, match="the scheduler is stuck"):
        engine.run()


def test_the_longest_sequence_bounds_what_a_request_may_come_to(start):
    engine = start(num_blocks=1 + 2048 // 16 + 12)
    engine.add("a", PROMPT[:300], max_tokens=100_000, headkv_budget=200)
    assert skip_reason(engine, "a") is None
