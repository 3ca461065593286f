# SPDX-License-Identifier: Apache-2.0
"""`/metrics` with several API servers, without statistics, and with another backend."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from headkv_vllm.engine.metrics.definitions import SKIPPED_REQUESTS
from headkv_vllm.needle import checkpoint_path
from tests.engine.helpers.server import Server, wait_for
from tests.server.test_metrics import GAUGES, HEADKV, MODEL, ask, counters, expected, growth

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


def ask_at_once(server: Server, lengths: list[int]) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda length: ask(server, length), lengths))


def test_totals_of_several_api_servers() -> None:
    lengths = [300 + 16 * index for index in range(24)]
    with Server(checkpoint_path(), *MODEL, *HEADKV, "--api-server-count", "2") as server:
        before = counters(server)
        ask_at_once(server, [*lengths, *[50] * 5])
        more = {**expected(lengths), f"{SKIPPED_REQUESTS.name}/too_short": 5}
        wait_for(lambda: more.items() <= growth(server, before).items())
        for name in GAUGES:
            if name != "headkv:allocation_cache_size":
                wait_for(lambda name=name: server.metric(name) == 0)
        assert server.stop() == 0


def test_a_server_without_statistics_answers() -> None:
    flags = ["--disable-log-stats", "--api-server-count", "2"]
    with Server(checkpoint_path(), *MODEL, *HEADKV, *flags) as server:
        ask_at_once(server, [1000] * 4)
        assert not any(counters(server).values())
        assert "Traceback" not in server.log()


def test_another_backend_shows_none_of_ours() -> None:
    stock = ["--attention-backend", "CPU_ATTN", "--block-size", "32"]
    with Server(checkpoint_path(), *MODEL, *stock) as server:
        ask(server, 1000)
        names = [sample.name for sample in server.samples()]
        assert "vllm:num_requests_running" in names
        assert not [name for name in names if name.startswith("headkv:")]
