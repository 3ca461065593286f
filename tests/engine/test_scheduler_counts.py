# SPDX-License-Identifier: Apache-2.0
"""What the scheduler counts agrees with vLLM's pool and with a plain count of the prompts."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from vllm.v1.metrics.stats import SchedulerStats

from headkv_vllm.budgets.request import request_budget
from headkv_vllm.engine.metrics import definitions as metrics
from headkv_vllm.engine.metrics.definitions import message_of, take_readings
from headkv_vllm.engine.metrics.scheduler_counts import SchedulerCounts
from headkv_vllm.engine.metrics.stat_logger import HeadKVStatLogger
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model

BLOCK_SIZE, NUM_HEADS = 16, 4
PROMPT = [(7 * index + index // 5) % 128 for index in range(400)]
GAUGES = [metric.name for metric in metrics.METRICS.values() if metric.kind == "gauge"]
SKIPPED = metrics.SKIPPED_REQUESTS.name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def start(model):
    """start(settings, num_blocks=, in_flight=, **flags): an engine that counts."""

    def start(settings=None, num_blocks=100, in_flight=1, **flags):
        every = {"max_num_batched_tokens": 1024, "max_num_seqs": 8, **flags}
        config = engine_config(model, settings or {"budget": 64}, **every)
        return BookkeepingEngine(config, num_blocks, in_flight)

    return start


def message(engine):
    return engine.scheduler._scheduler_counts.take_message()


def added(messages):
    """What all the messages add up to, where that is not 0."""
    total = Counter()
    for each in messages:
        total.update(each)
    return {name: value for name, value in total.items() if value}


def counters(messages):
    return {name: value for name, value in added(messages).items() if name not in GAUGES}


def test_a_compressed_and_a_skipped_request(start):
    engine = start()
    engine.add("long", PROMPT[:100], max_tokens=30)
    engine.add("short", PROMPT[200:250], max_tokens=30)
    engine.step()
    messages = [message(engine)]
    counted = {
        "headkv:compressed_requests_total": 1,
        "headkv:compressions_total/prompt": 1,
        "headkv:skipped_requests_total/too_short": 1,
        "headkv:prompt_tokens_total": 100,
        "headkv:kept_tokens_total": 3 * BLOCK_SIZE + 100 - 5 * BLOCK_SIZE,
    }
    held = {"headkv:blocks_in_use": 7 + 3 + 4, "headkv:stock_blocks": 7 + 4}
    assert added(messages) == {**counted, **held}
    engine.step()
    messages.append(message(engine))
    counted["headkv:freed_blocks_total"] = 5
    held["headkv:blocks_in_use"] -= 5
    compressed = {"headkv:live_compressed_requests": 1, "headkv:head_blocks_in_use": 3 * NUM_HEADS}
    assert added(messages) == {**counted, **held, **compressed}
    assert message(engine) == {}
    engine.run()
    assert added([*messages, message(engine)]) == counted


@pytest.mark.parametrize(
    ("reason", "settings", "length", "max_tokens", "num_blocks"),
    [
        ("off", {"budget": 0}, 300, 4, 100),
        ("too_short", {"budget": 64}, 71, 4, 100),
        ("short_answer", {"budget": 64}, 300, 1, 100),
        ("short_answer", {"budget": 64, "compress_every": 16}, 50, 55, 100),
        ("resumable", {"budget": 64}, 300, 4, 100),
        ("no_room", {"budget": 300}, 390, 4, 30),
    ],
)
def test_a_request_is_skipped_for_a_reason(start, reason, settings, length, max_tokens, num_blocks):
    engine = start(settings, num_blocks)
    resumable = reason == "resumable"
    engine.add("a", PROMPT[:length], max_tokens=max_tokens, resumable=resumable)
    engine.step()
    assert counters([message(engine)]) == {f"{SKIPPED}/{reason}": 1}


def test_a_prompt_in_chunks_counts_when_its_last_one_is_scheduled(start):
    engine = start(max_num_batched_tokens=64)
    engine.add("a", PROMPT[:200], max_tokens=2)
    seen = []
    while engine.scheduler.requests:
        engine.step()
        seen.append(message(engine).get("headkv:compressed_requests_total", 0))
    assert seen[:5] == [0, 0, 0, 1, 0] and sum(seen) == 1


def test_a_request_that_is_compressed_again_counts_once_and_frees_twice(start):
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=60)
    for _ in range(30):
        engine.step()
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    before = message(engine)
    assert before["headkv:freed_blocks_total"] == 5
    assert "headkv:live_compressed_requests" not in before
    engine.run()
    total = added([before, message(engine)])
    assert total["headkv:freed_blocks_total"] == 10
    assert total["headkv:compressed_requests_total"] == 1


def test_an_aborted_request_that_was_waiting_counts_as_neither(start):
    engine = start()
    engine.add("a", PROMPT[:100], max_tokens=60)
    engine.abort("a")
    engine.run()
    assert message(engine) == {}


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_any_course_of_events_is_counted_as_it_was(start, in_flight, seed):
    """Arrivals and aborts at random; messages are taken now and then, and not at each step."""
    engine = start(num_blocks=80, in_flight=in_flight, enable_prefix_caching=False)
    chance, messages, completed = random.Random(seed), [], set()
    for step in range(200):
        if len(engine.scheduler.requests) < 6 and chance.random() < 0.4:
            prompt = PROMPT[: chance.randint(1, 200)]
            engine.add(f"request {step}", prompt, max_tokens=chance.randint(2, 60))
        if chance.random() < 0.03:
            engine.abort(chance.choice([*engine.scheduler.requests, "none"]))
        lengths = {name: r.num_prompt_tokens for name, r in engine.scheduler.requests.items()}
        ends = step_ends(engine.step())
        completed |= {(name, lengths[name]) for name in ends if ends[name] >= lengths[name]}
        if chance.random() < 0.3:
            messages.append(message(engine))
            assert_gauges_are_the_pools(engine, added(messages))
    for name in list(engine.scheduler.requests):
        engine.abort(name)
    engine.run()
    messages.append(message(engine))
    assert counters(messages) == added(messages)
    assert_counters_are_those_of(engine, counters(messages), [n for _, n in completed])


def step_ends(output):
    """How many tokens of each request are computed after a step, as its worker is told."""
    starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return {name: starts[name] + num for name, num in output.num_scheduled_tokens.items()}


def assert_gauges_are_the_pools(engine, now):
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert now.get("headkv:blocks_in_use", 0) == pool.num_gpu_blocks - 1 - engine.num_free
    rows = engine.manager.req_to_blocks
    num_tokens = {name: engine.scheduler.requests[name].num_computed_tokens for name in rows}
    stock = sum(-(-tokens // BLOCK_SIZE) for tokens in num_tokens.values())
    # Rows may have room for a token that is not computed yet.
    assert stock <= now.get("headkv:stock_blocks", 0) <= stock + len(rows)


def assert_counters_are_those_of(engine, totals, lengths):
    budgets = [request_budget(engine.settings, length, BLOCK_SIZE) for length in lengths]
    compressed = [budget for budget in budgets if budget.compressed]
    tails = [b.num_prompt_tokens - b.num_full_blocks * BLOCK_SIZE for b in compressed]
    assert totals["headkv:compressed_requests_total"] == len(compressed) > 0
    assert totals[f"{SKIPPED}/too_short"] == len(budgets) - len(compressed) > 0
    assert totals["headkv:prompt_tokens_total"] == sum(b.num_prompt_tokens for b in compressed)
    kept = sum(b.num_compressed_blocks for b in compressed) * BLOCK_SIZE + sum(tails)
    assert totals["headkv:kept_tokens_total"] == kept


EVENTS = st.one_of(
    st.tuples(st.just("plans"), st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.just("compression"), st.integers(0, 10**8)),
    st.tuples(st.just("message")),
)


@settings(max_examples=50)
@given(events=st.lists(EVENTS, max_size=60))
def test_what_the_worker_counts_arrives_once(engine_at_rest, events):
    table = WorkerCounts.private()
    stats = SchedulerCounts(engine_at_rest.manager, NUM_HEADS, table)
    hits, misses, times, messages = 0, 0, [], []
    for kind, *values in [*events, ("message",)]:
        if kind == "plans":
            hits, misses = hits + values[0], misses + values[1]
            table.write_allocation_cache(hits, misses, misses)
        elif kind == "compression":
            table.add_compression(values[0] / 1e6)
            times.append(values[0])
        else:
            messages.append(stats.take_message())
    readings = [r for each in messages for r in take_readings(stats_with(each))]
    by_name = Counter()
    for reading in readings:
        by_name[reading.metric.name] += reading.value
    assert by_name[metrics.ALLOCATION_CACHE_HITS.name] == hits
    assert by_name[metrics.ALLOCATION_CACHE_MISSES.name] == misses
    seconds = [r.value for r in readings if r.metric is metrics.COMPRESSION_SECONDS]
    assert seconds == times
    stats.check_integrity()


@pytest.fixture(scope="module")
def engine_at_rest(start):
    return start()


def stats_with(numbers):
    stats = SchedulerStats()
    message_of(stats).update(numbers)
    return stats


def test_what_is_vllms_own_stays_in_its_statistics():
    stats = stats_with({"waiting_to_start": 3, "headkv:freed_blocks_total": 2, "in_progress": 0})
    (reading,) = take_readings(stats)
    assert (reading.metric, reading.value) == (metrics.FREED_BLOCKS, 2)
    assert stats.num_kv_fetch_reqs_by_stage == {"waiting_to_start": 3, "in_progress": 0}


def sample(name, engine="0", **labels):
    every = {"model_name": "served", "engine": engine, **labels}
    return REGISTRY.get_sample_value(name, every)


@pytest.fixture(scope="module")
def logger(model):
    config = engine_config(model, {"budget": 64}, served_model_name="served")
    return HeadKVStatLogger(config, [0, 1])


def test_a_logger_shows_zeros_for_each_engine_and_reason(logger):
    for engine in ("0", "1"):
        for reason in metrics.SKIPPED_REQUESTS.label_values:
            assert sample(SKIPPED, engine, reason=reason) is not None
        assert sample("headkv:compression_seconds_count", engine) is not None


def test_two_loggers_of_one_process_share_their_families(logger, model):
    config = engine_config(model, {"budget": 64}, served_model_name="served")
    before = sample("headkv:freed_blocks_total")
    for each in (logger, HeadKVStatLogger(config, [0])):
        each.record(stats_with({"headkv:freed_blocks_total": 3}), None)
    assert sample("headkv:freed_blocks_total") == before + 6


def test_counters_and_gauges_change_for_their_engine(logger):
    skipped, held = f"{SKIPPED}/off", "headkv:blocks_in_use"
    before = sample(SKIPPED, "1", reason="off")
    for value in (5, 7, -2):
        numbers = {held: value, skipped: abs(value)}
        logger.record(stats_with(numbers), None, engine_idx=1)
    logger.record(None, None)
    assert sample(held, "1") == 10 and sample(SKIPPED, "1", reason="off") == before + 14
    assert sample(held, "0") == 0


@settings(max_examples=50)
@given(times=st.lists(st.integers(0, 20_000_000), max_size=30))
def test_each_time_falls_into_its_bucket(logger, engine_at_rest, times):
    table = WorkerCounts.private()
    stats = SchedulerCounts(engine_at_rest.manager, NUM_HEADS, table)
    for microseconds in times:
        table.add_compression(microseconds / 1e6)
    bounds = [*metrics.COMPRESSION_SECONDS.buckets, float("inf")]
    before, sum_before = buckets(bounds), sample("headkv:compression_seconds_sum")
    logger.record(stats_with(stats.take_message()), None)
    counted = [sum(time / 1e6 <= bound for time in times) for bound in bounds]
    assert [now - then for now, then in zip(buckets(bounds), before, strict=True)] == counted
    grown = sample("headkv:compression_seconds_sum") - sum_before
    assert grown == pytest.approx(sum(times) / 1e6)


def buckets(bounds):
    shown = [str(float(bound)).replace("inf", "+Inf") for bound in bounds]
    return [sample("headkv:compression_seconds_bucket", le=bound) for bound in shown]


def test_another_backend_has_no_samples(model):
    flags = {"attention_backend": "CPU_ATTN", "served_model_name": "other"}
    other = HeadKVStatLogger(engine_config(model, {"budget": 64}, **flags), [0])
    other.record(SchedulerStats(), None)
    other.log_engine_initialized()
    samples = [each for family in REGISTRY.collect() for each in family.samples]
    assert not [each for each in samples if each.labels.get("model_name") == "other"]
