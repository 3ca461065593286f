# SPDX-License-Identifier: Apache-2.0
"""What `/metrics` says after known requests, to the last token and block."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from headkv_vllm.budgets.plan import Plan, make_plan
from headkv_vllm.config import Settings
from headkv_vllm.engine.metrics.definitions import METRICS, SKIPPED_REQUESTS
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import resolve
from headkv_vllm.needle import checkpoint_path
from tests.engine.helpers.server import Server, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = Settings(budget=128)
BLOCK_SIZE = 16
MODEL = ["--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK_SIZE)]
MODEL += ["--max-model-len", "4608"]
HEADKV = ["--attention-backend", "headkv"]
HEADKV += ["--additional-config", json.dumps({"headkv": {"budget": SETTINGS.budget}})]
GAUGES = [metric.name for metric in METRICS.values() if metric.kind == "gauge"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(checkpoint_path(), *MODEL, *HEADKV) as running:
        yield running


def plan(num_prompt_tokens: int) -> Plan:
    identity = identify_checkpoint(checkpoint_path())
    scores = resolve(SETTINGS, identity).values
    return make_plan(scores, SETTINGS, num_prompt_tokens, BLOCK_SIZE, identity.head_size, 4)


def random_prompt(num_tokens: int) -> list[int]:
    """One that shares no block with any other."""
    return random.choices(range(4, 448), k=num_tokens)


def ask(server: Server, num_prompt_tokens: int, max_tokens: int = 5, **arguments: Any) -> Any:
    return server.client.completions.create(
        model=server.model,
        prompt=random_prompt(num_prompt_tokens),
        temperature=0,
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True, "vllm_xargs": arguments.pop("xargs", None)},
        **arguments,
    )


def counters(server: Server) -> dict[str, float]:
    """Each counter's sum, a label's value after a slash, and the histogram's count and sum."""
    found: dict[str, float] = {}
    for sample in server.samples():
        if sample.name.startswith("headkv:") and sample.name.endswith(("_total", "_count", "_sum")):
            value = sample.labels.get("reason") or sample.labels.get("kind")
            key = f"{sample.name}/{value}" if value else sample.name
            found[key] = found.get(key, 0) + sample.value
    return found


def growth(server: Server, before: dict[str, float]) -> dict[str, float]:
    """What has grown since, without the seconds, which no test can know."""
    now = counters(server)
    grown = {name: now[name] - before.get(name, 0) for name in now if not name.endswith("_sum")}
    return {name: value for name, value in grown.items() if value}


def expected(lengths: list[int]) -> dict[str, float]:
    """What requests of these prompt lengths add to the counters, all of them compressed."""
    plans = [plan(length) for length in lengths]
    assert all(each.compressed for each in plans)
    return {
        "headkv:compressed_requests_total": len(plans),
        "headkv:prompt_tokens_total": sum(lengths),
        "headkv:kept_tokens_total": sum(each.mean_kept_tokens for each in plans),
        "headkv:freed_blocks_total": sum(e.num_blocks_prefill - e.num_blocks_held for e in plans),
        "headkv:compression_seconds_count": len(plans),
        "headkv:compressions_total/prompt": len(plans),
    }


def test_each_declared_metric_is_there_before_anything_is_asked(server: Server) -> None:
    samples = {sample.name: sample for sample in server.samples()}
    for metric in METRICS.values():
        for name in metric.sample_names:
            labels = samples[name].labels
            assert (labels["model_name"], labels["engine"]) == (server.model, "0")
    reasons = {s.labels["reason"] for s in server.samples() if s.name == SKIPPED_REQUESTS.name}
    assert reasons == set(SKIPPED_REQUESTS.label_values)


def test_compressed_requests_add_what_was_planned_for_them(server: Server) -> None:
    before = counters(server)
    lengths = [1000, 1000, 700, 150]
    for length in lengths:
        ask(server, length)
    # The budgets of heads are asked for to compress a prompt, and to make its heads' tables.
    plans = {
        "headkv:allocation_cache_misses_total": 3,
        "headkv:allocation_cache_hits_total": 4 * 2 - 3,
    }
    wait_for(lambda: growth(server, before) == {**expected(lengths), **plans})
    seconds = "headkv:compression_seconds_sum"
    assert 0 < counters(server)[seconds] - before[seconds] < 10
    assert server.metric("headkv:allocation_cache_size") == 3


def test_a_short_prompt_is_skipped(server: Server) -> None:
    before = counters(server)
    assert not plan(100).compressed
    ask(server, 100)
    wait_for(lambda: growth(server, before) == {f"{SKIPPED_REQUESTS.name}/too_short": 1})


def test_requests_with_budgets_of_their_own(server: Server) -> None:
    before = counters(server)
    ask(server, 1000, xargs={"headkv_budget": 0})
    wait_for(lambda: growth(server, before) == {f"{SKIPPED_REQUESTS.name}/off": 1})
    before = counters(server)
    ask(server, 1000, max_tokens=2, xargs={"headkv_budget": 264})
    wait_for(lambda: bool(growth(server, before).get("headkv:freed_blocks_total")))
    kept = growth(server, before)["headkv:kept_tokens_total"]
    assert kept == 256 + 1000 - 62 * BLOCK_SIZE


def test_requests_at_once_add_up(server: Server) -> None:
    before = counters(server)
    lengths = [400 + 16 * index for index in range(16)]
    with ThreadPoolExecutor(len(lengths)) as threads:
        list(threads.map(lambda length: ask(server, length), lengths))
    wait_for(lambda: expected(lengths).items() <= growth(server, before).items())


def test_gauges_agree_with_the_pool_while_requests_come_and_go(server: Server) -> None:
    """Clients keep asking until enough has been read: steps that only generate are so short with
    this model that vLLM's API server finds time for /metrics between prompts only."""
    held = plan(1000)
    readings: list[dict[str, float]] = []
    ended = Event()

    def ask_on() -> None:
        while not ended.is_set():
            assert ask(server, 1000, max_tokens=200).usage.completion_tokens == 200

    def enough() -> bool:
        readings.append({sample.name: sample.value for sample in server.samples()})
        most_live = max(now["headkv:live_compressed_requests"] for now in readings)
        return most_live >= 2 and len({now["headkv:blocks_in_use"] for now in readings}) >= 5

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask_on) for _ in range(8)]
        try:
            wait_for(enough, seconds=120)
        finally:
            ended.set()
    for client in asked:
        client.result()
    (info,) = (s for s in server.samples() if s.name == "vllm:cache_config_info")
    num_blocks = int(info.labels["num_gpu_blocks"]) - 1
    num_heads = sum(len(row) for row in held.head_blocks)
    for now in readings:
        live, in_use = now["headkv:live_compressed_requests"], now["headkv:blocks_in_use"]
        assert in_use == round(now["vllm:kv_cache_usage_perc"] * num_blocks)
        assert now["headkv:head_blocks_in_use"] == live * held.num_compressed_blocks * num_heads
        # What they have generated takes the same blocks with and without headkv.
        saved = live * (held.num_blocks_stock - held.num_blocks_held)
        being_read = now["vllm:num_requests_running"] - live
        extra = being_read * held.num_compressed_blocks
        assert now["headkv:stock_blocks"] - in_use == saved - extra


@pytest.mark.parametrize(
    "name", [name for name in GAUGES if name != "headkv:allocation_cache_size"]
)
def test_gauges_are_0_at_rest(server: Server, name: str) -> None:
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
    wait_for(lambda: server.metric(name) == 0)


def test_vllms_log_says_nothing_of_transfers(server: Server) -> None:
    """Ours ride where vLLM has the states of its KV transfers, which its log tells."""
    ask(server, 1000, max_tokens=2000)
    wait_for(lambda: "Avg generation throughput" in server.log())
    assert "KV fetch" not in server.log()
