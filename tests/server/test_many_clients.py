# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, some of which go away; and vLLM's own benchmark client."""

import asyncio
import os
import random
import subprocess
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import pytest
from openai import AsyncOpenAI

from headkv_vllm.engine.metrics.definitions import METRICS
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from tests.engine.helpers.server import VLLM, wait_for
from tests.server.guarded_server import KEY, GuardedServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_CLIENTS, NUM_TOKENS, MAX_TOKENS = 64, 1024, 32
OWN: list[dict[str, Any]] = [
    {},
    {"headkv_budget": 0},
    {"headkv_budget": 64},
    {"headkv_budget": 256},
    {"headkv_keep_ratio": 0.25},
    {"headkv_policy": "uniform"},
    {"headkv_policy": "adakv", "headkv_budget": 96},
    {"headkv_policy": "streaming"},
]
PATIENCE = (1, 4, None, 12, None)
"""Chunks after which a client goes away; None: it stays to the end."""


async def read(
    client: AsyncOpenAI, prompt: str, own: Mapping[str, Any], chunks: int | None
) -> str | None:
    """The streamed answer, or None of a client that went away after `chunks` chunks."""
    stream = await client.completions.create(
        model=GuardedServer.model,
        prompt=prompt,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        extra_body={"vllm_xargs": dict(own)} if own else {},
    )
    texts: list[str] = []
    async for chunk in stream:
        texts.append(chunk.choices[0].text)
        if len(texts) == chunks:
            await stream.close()
            return None
    return "".join(texts)


@pytest.fixture(scope="module")
def requests() -> list[tuple[str, dict[str, Any], int | None]]:
    """Each prompt goes to four clients, so that they share its blocks before they compress it."""
    samples = list(generate_samples("multi-query", NUM_TOKENS, NUM_CLIENTS // 4, seed=31))
    prompts = [sample.prompt for sample in samples] * 4
    drawn = list(zip(prompts, cycle(OWN), islice(cycle(PATIENCE), NUM_CLIENTS), strict=False))
    return random.Random(5).sample(drawn, NUM_CLIENTS)


def test_each_answer_is_what_the_same_request_gets_alone(
    guarded_server: GuardedServer, requests: list[tuple[str, dict[str, Any], int | None]]
) -> None:
    async def all_at_once() -> list[str | None]:
        async with client() as shared:
            return await asyncio.gather(*(read(shared, *request) for request in requests))

    async def one_by_one() -> list[str | None]:
        async with client() as shared:
            return [
                await read(shared, prompt, own, None) if chunks is None else None
                for prompt, own, chunks in requests
            ]

    def client() -> AsyncOpenAI:
        url = f"{guarded_server.url}/v1"
        return AsyncOpenAI(base_url=url, api_key=KEY, timeout=300, max_retries=0)

    together = asyncio.run(all_at_once())
    assert sum(answer is not None for answer in together) >= NUM_CLIENTS // 3
    assert together == asyncio.run(one_by_one())
    assert len(set(together)) > len(OWN)
    wait_for(lambda: guarded_server.num_held_blocks() == 0)
    gauges = [metric.name for metric in METRICS.values() if metric.kind == "gauge"]
    held = [name for name in gauges if "allocation_cache" not in name]
    wait_for(lambda: not any(guarded_server.metric(name) for name in held))


def test_vllms_own_benchmark_client_works(guarded_server: GuardedServer) -> None:
    command = [VLLM, "bench", "serve", "--base-url", guarded_server.url]
    command += ["--model", guarded_server.model, "--tokenizer", str(checkpoint_path())]
    command += ["--dataset-name", "random", "--random-input-len", "600"]
    command += ["--random-output-len", "16", "--num-prompts", "8", "--seed", "1"]
    before = guarded_server.metric("headkv:compressed_requests_total")
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Successful requests:                     8" in done.stdout
    assert guarded_server.metric("headkv:compressed_requests_total") - before >= 8
