# SPDX-License-Identifier: Apache-2.0
"""Our manager and scheduler on vLLM's real block pool and scheduler, step by step."""

import random

import pytest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from headkv_vllm.budgets.request import max_compressed_blocks, request_budget
from headkv_vllm.cache.block_row import HEADER_SIZE, num_row_entries
from headkv_vllm.engine.kv_cache import HeadKVSpec
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model
from tests.engine.helpers.random_course import COURSES, NUM_BLOCKS, PROMPT, Course

BLOCK_SIZE, WINDOW = 16, 8
SETTINGS = {"budget": 64, "window": WINDOW}
"""K = 3 blocks of 16 for each prompt of at least 4 blocks and the window."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(settings, num_blocks=, in_flight=, **flags): an engine with an empty pool."""
    model = write_model(tmp_path_factory.mktemp("model"))

    def start(settings=SETTINGS, num_blocks=100, in_flight=1, **flags):
        every = {"max_num_batched_tokens": 1024, "max_num_seqs": 8, **flags}
        return BookkeepingEngine(engine_config(model, settings, **every), num_blocks, in_flight)

    return start


def row_of(engine, request_id):
    return [block.block_id for block in engine.manager.req_to_blocks[request_id]]


def blocks_of(engine, request_id):
    return engine.manager.req_to_blocks[request_id]


def test_a_row_is_header_compressed_blocks_and_prompt_blocks(start):
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=30)
    output = engine.step()
    (new,) = output.scheduled_new_reqs
    row = new.block_ids[0]
    assert row[:4] == [100, 3, 0, 0]
    assert len(row) == num_row_entries(3, num_blocks=7)
    assert len(set(row[HEADER_SIZE:])) == 10 and 0 not in row[HEADER_SIZE:]
    for compressed in blocks_of(engine, "a")[HEADER_SIZE : HEADER_SIZE + 3]:
        assert compressed.block_hash is None and compressed.ref_cnt == 1


def test_the_full_prompt_blocks_go_back_once_the_prompt_is_processed_and_no_earlier(start):
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=30)
    free = engine.num_free
    engine.step()
    assert engine.num_free == free - 10
    engine.step()
    # F = (100 - 8) // 16 = 5 of the 7 prompt blocks are freed, and their places remain.
    assert engine.num_free == free - 5
    assert row_of(engine, "a")[HEADER_SIZE + 3 :][:5] == [0] * 5
    assert 0 not in row_of(engine, "a")[HEADER_SIZE + 8 :]
    assert len(engine.worker.rows["a"]) == HEADER_SIZE + 10


def test_the_last_prompt_token_still_needs_the_whole_prompt(start):
    """A window of one token lets a chunk end right before it."""
    engine = start({"budget": 64, "window": 1}, max_num_batched_tokens=99)
    engine.add("a", PROMPT[:100], max_tokens=30)
    assert engine.step().num_scheduled_tokens["a"] == 99
    assert engine.step().num_scheduled_tokens["a"] == 1
    assert 0 not in row_of(engine, "a")[HEADER_SIZE:]
    engine.step()
    assert row_of(engine, "a")[HEADER_SIZE + 3 :][:6] == [0] * 6


def test_an_asynchronous_step_in_flight_keeps_the_prompt_blocks(start):
    engine = start(in_flight=2)
    engine.add("a", PROMPT[:100], max_tokens=30)
    free = engine.num_free
    engine.step()
    # The step that completes the prompt is still in flight while this one is scheduled.
    engine.step()
    assert engine.num_free == free - 10
    engine.step()
    assert engine.num_free == free - 5


@pytest.mark.parametrize(
    ("num_prompt_tokens", "settings"),
    [(71, SETTINGS), (3, SETTINGS), (400, {"budget": 0}), (400, {"budget": 4096})],
)
def test_a_request_with_nothing_to_gain_keeps_all_its_blocks(start, num_prompt_tokens, settings):
    engine = start(settings)
    engine.add("a", PROMPT[:num_prompt_tokens], max_tokens=40)
    for _ in range(5):
        engine.step()
    assert row_of(engine, "a")[:2] == [num_prompt_tokens, 0]
    num_tokens = num_prompt_tokens + 4
    assert len(row_of(engine, "a")) == HEADER_SIZE + -(-num_tokens // BLOCK_SIZE)
    assert 0 not in row_of(engine, "a")[HEADER_SIZE:]
    engine.run()


def test_the_first_prompt_length_that_gains_is_compressed(start):
    engine = start()
    engine.add("a", PROMPT[:72], max_tokens=2)
    engine.step()
    assert engine.worker.rows["a"][:2] == [72, 3]


def test_freed_prompt_blocks_go_on_serving_prefix_hits(start):
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=4)
    engine.run()
    assert engine.num_free == 99
    engine.add("b", PROMPT[:150], max_tokens=4)
    (new,) = engine.step().scheduled_new_reqs
    assert new.num_computed_tokens == 5 * BLOCK_SIZE
    assert new.block_ids[0][:2] == [150, 3]
    engine.run()


@pytest.mark.parametrize("num_prompt_tokens", range(72, 106))
def test_a_hit_never_reaches_the_window(start, num_prompt_tokens):
    engine = start()
    engine.add("longer", PROMPT[:200], max_tokens=2)
    engine.run()
    engine.add("a", PROMPT[:num_prompt_tokens], max_tokens=2)
    (new,) = engine.step().scheduled_new_reqs
    num_full = (num_prompt_tokens - WINDOW) // BLOCK_SIZE
    assert new.num_computed_tokens == num_full * BLOCK_SIZE
    engine.run()


def test_what_was_generated_behind_a_compressed_prompt_is_never_hit(start):
    """A second turn repeats the first one's answer; only the first one's prompt is exact."""
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=60)
    engine.run()
    engine.add("b", engine.tokens("a")[:160] + PROMPT[:40], max_tokens=4)
    (new,) = engine.step().scheduled_new_reqs
    assert new.num_computed_tokens == 5 * BLOCK_SIZE
    engine.run()


def test_an_uncompressed_request_serves_and_hits_what_it_generated(start):
    engine = start({"budget": 0})
    engine.add("a", PROMPT[:100], max_tokens=60)
    engine.run()
    engine.add("b", engine.tokens("a")[:160], max_tokens=4)
    (new,) = engine.step().scheduled_new_reqs
    assert new.num_computed_tokens == 144
    engine.run()


def test_without_prefix_caching_nothing_is_hit_and_all_is_freed(start):
    engine = start(enable_prefix_caching=False)
    for name in ("a", "b"):
        engine.add(name, PROMPT[:100], max_tokens=20)
        assert engine.step().scheduled_new_reqs[0].num_computed_tokens == 0
    engine.run()
    assert engine.num_free == 99


@pytest.mark.parametrize("num_prompt_tokens", range(122, 141))
def test_no_chunk_ends_inside_the_window(start, num_prompt_tokens):
    """Stock vLLM would end the first chunk at 128, wherever the window begins."""
    engine = start(max_num_batched_tokens=128)
    engine.add("a", PROMPT[:num_prompt_tokens], max_tokens=2)
    chunks = [engine.step().num_scheduled_tokens["a"]]
    while sum(chunks) < num_prompt_tokens:
        chunks.append(engine.step().num_scheduled_tokens["a"])
    window_start = num_prompt_tokens - WINDOW
    first = num_prompt_tokens if num_prompt_tokens <= 128 else min(128, window_start)
    assert chunks == [first] if first == num_prompt_tokens else [first, num_prompt_tokens - first]
    engine.run()


def test_stock_vllm_would_leave_one_token_of_the_window_to_the_last_chunk(start, monkeypatch):
    monkeypatch.setattr(
        "headkv_vllm.engine.scheduler.HeadKVScheduler._reserve_prefill_lookahead",
        Scheduler._reserve_prefill_lookahead,
    )
    engine = start(max_num_batched_tokens=128)
    engine.add("a", PROMPT[:129], max_tokens=2)
    engine.step()
    with pytest.raises(AssertionError, match="the window's queries are not all in this step"):
        engine.step()


@pytest.mark.parametrize("threshold", [8, 9, 23])
def test_long_prompts_in_short_chunks_do_not_end_in_the_window_either(start, threshold):
    engine = start(max_num_batched_tokens=128, long_prefill_token_threshold=threshold)
    for index in range(3):
        engine.add(f"request {index}", PROMPT[: 90 + 5 * index], max_tokens=3)
    engine.run()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_compressed_request_that_is_preempted_starts_again_and_compresses_again(start, in_flight):
    engine = start(in_flight=in_flight)
    engine.add("a", PROMPT[:100], max_tokens=60)
    for _ in range(30):
        engine.step()
    before = row_of(engine, "a")
    assert before[HEADER_SIZE + 3 :][:5] == [0] * 5
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert "a" not in engine.manager.req_to_blocks and engine.num_free == 99
    engine.check()
    output = engine.step()
    assert output.scheduled_cached_reqs.resumed_req_ids == {"a"}
    # The first step ends with the prompt, the next computes what had been generated.
    assert output.num_scheduled_tokens["a"] == 100
    assert row_of(engine, "a")[:2] == [100, 3] and 0 not in row_of(engine, "a")[HEADER_SIZE:]
    engine.run()
    assert engine.num_free == 99


@pytest.mark.parametrize("policy", ["headkv", "adakv"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_resumed_requests_chunk_ends_with_its_prompt(start, in_flight, policy):
    engine = start({**SETTINGS, "policy": policy}, in_flight=in_flight)
    engine.add("a", PROMPT[:100], max_tokens=60)
    engine.add("off", PROMPT[100:200], max_tokens=60, headkv_budget=0)
    for _ in range(30):
        engine.step()
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    scheduled = engine.step().num_scheduled_tokens
    assert scheduled["a"] == 100 and scheduled["off"] > 120
    assert engine.step().num_scheduled_tokens["a"] > 20
    engine.run()
    assert engine.num_free == 99


def test_a_preempted_request_hits_its_own_prompt_and_nothing_behind_it(start):
    """Another request may have put what the first one generated into the prefix cache."""
    engine = start({"budget": 64, "window": WINDOW}, num_blocks=200)
    engine.add("a", PROMPT[:100], max_tokens=100)
    for _ in range(60):
        engine.step()
    request = engine.scheduler.requests["a"]
    known = engine.tokens("a")[: request.num_tokens]
    engine.add("b", known + PROMPT[:100], max_tokens=1)
    engine.step()
    engine.scheduler.running.remove(request)
    engine.scheduler._preempt_request(request, 0.0)
    output = engine.step()
    assert output.scheduled_cached_reqs.resumed_req_ids == {"a"}
    assert output.scheduled_cached_reqs.num_computed_tokens == [5 * BLOCK_SIZE]
    engine.run()


@pytest.mark.parametrize("phase", ["waiting", "prefill", "prompt in flight", "decode", "preempted"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_abort_in_any_phase_leaves_nothing_behind(start, phase, in_flight):
    engine = start(max_num_batched_tokens=64, in_flight=in_flight)
    engine.add("other", PROMPT[200:290], max_tokens=3)
    engine.add("a", PROMPT[:100], max_tokens=30)
    num_steps = {"waiting": 0, "prefill": 2, "prompt in flight": 4, "decode": 12, "preempted": 12}
    for _ in range(num_steps[phase]):
        engine.step()
    if phase == "preempted":
        engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        assert engine.scheduler.requests["a"].status == RequestStatus.PREEMPTED
    engine.abort("a")
    engine.check()
    assert "a" not in engine.manager.budgets
    engine.run()
    assert engine.num_free == 99 and not engine.manager.budgets


@pytest.mark.parametrize(("num_blocks", "fits_at_once"), [(1 + 20 + 20, True), (40, False)])
def test_admission_counts_the_compressed_blocks(start, num_blocks, fits_at_once):
    """Each of two requests takes 17 blocks of tokens and K = 3."""
    engine = start(num_blocks=num_blocks)
    engine.add("a", PROMPT[:260], max_tokens=12)
    engine.add("b", PROMPT[100:360], max_tokens=4)
    assert ("b" in engine.step().num_scheduled_tokens) == fits_at_once
    # Now "a" has given up its prompt, and "b" fits in.
    assert "b" in engine.step().num_scheduled_tokens
    engine.run()


def test_a_prompt_that_grows_is_not_compressed(start):
    engine = start()
    engine.add("a", PROMPT[:200], max_tokens=8, resumable=True)
    engine.step()
    assert row_of(engine, "a")[:2] == [200, 0]


@pytest.mark.parametrize(
    "settings", [SETTINGS, {"keep_ratio": 0.5}, {"budget": 0}, {**SETTINGS, "max_budget": 1024}]
)
def test_the_spec_makes_room_for_the_widest_row_and_the_servers_own_budget(start, settings):
    engine = start(settings)
    config = engine.scheduler.vllm_config
    spec = engine.manager.kv_cache_spec
    assert isinstance(spec, HeadKVSpec)
    most = max_compressed_blocks(engine.settings, 2048, BLOCK_SIZE)
    width = spec.max_num_blocks_per_req(config, 2048)
    # F is 127, and a request may ask for up to F - 1 blocks where there is no ceiling.
    # Any request may be compressed again, and then has a block for its queries.
    widest = 1 + (1024 - WINDOW) // BLOCK_SIZE if "max_budget" in settings else 127
    assert width == HEADER_SIZE + widest + 128
    assert spec.max_memory_usage_bytes(config) == (most + 128) * spec.page_size_bytes
    for length in range(1, 2049, 13):
        budget = request_budget(engine.settings, length, BLOCK_SIZE)
        assert num_row_entries(budget.num_compressed_blocks, 128) <= width
    merged = HeadKVSpec.merge([spec, spec])
    assert type(merged) is HeadKVSpec and merged == spec


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("num_prompt_tokens", [20, 100, 300])
@pytest.mark.parametrize("every", [16, 50, 96])
def test_a_request_that_is_compressed_again_is_bounded(start, num_prompt_tokens, every, in_flight):
    """However long it generates, and after it is preempted too. Its blocks go back as it goes."""
    engine = start({"budget": 64, "compress_every": every}, num_blocks=200, in_flight=in_flight)
    engine.add("a", PROMPT[:num_prompt_tokens], max_tokens=700)
    budget, num_free = engine.manager.budgets["a"], engine.num_free
    bound = budget.num_compressed_blocks + -(-(every + WINDOW) // BLOCK_SIZE) + 2
    held = []
    while "a" in engine.scheduler.requests:
        request = engine.scheduler.requests["a"]
        if request.num_computed_tokens == num_prompt_tokens + 400 and not request.num_preemptions:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.step()
        if request.num_computed_tokens > budget.first_point + BLOCK_SIZE:
            held.append(engine.manager.num_held("a"))
            assert held[-1] == num_free - engine.num_free or not engine.manager.budgets
    assert request.num_preemptions == 1
    assert max(held) <= min(bound, engine.manager.max_blocks_again(budget))
    engine.run()
    assert engine.num_free == num_free


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_prompt_longer_than_the_pool_is_admitted(start, in_flight):
    """Admission counts what such a request holds at a time, not all of its tokens."""
    settings = {"budget": 40, "compress_every": 32, "compress_prefill": True}
    engine = start(settings, num_blocks=15, in_flight=in_flight)
    for name in "ab":
        engine.add(name, PROMPT[:390], max_tokens=40)
    engine.run()
    assert engine.num_free == 14


@pytest.mark.parametrize("in_flight", [1, 2])
def test_requests_that_are_compressed_again_preempt_none(start, in_flight):
    """A pool that holds four long answers holds twelve of them, and admission knows it."""
    engine = start(
        {"budget": 64, "compress_every": 32},
        num_blocks=4 * 30 + 1,
        in_flight=in_flight,
        max_num_seqs=16,
    )
    for index in range(12):
        engine.add(f"{index}", PROMPT[index : index + 80], max_tokens=400)
    most = preemptions = 0
    while requests := list(engine.scheduler.requests.values()):
        engine.step()
        most = max(most, len(engine.scheduler.running))
        preemptions = max(preemptions, *(request.num_preemptions for request in requests))
    assert most == 12 and preemptions == 0


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize(("settings", "flags"), COURSES)
def test_any_course_of_events_keeps_the_books_in_order(start, settings, flags, in_flight):
    """Requests have budgets and policies of their own, some of them bad."""
    engine = start(settings, num_blocks=NUM_BLOCKS, in_flight=in_flight, **flags)
    course = Course(engine, random.Random(f"{settings} {flags} {in_flight}"))
    for _ in range(600):
        course.go()
    course.end()
    assert course.happened["preemptions"] > 0
