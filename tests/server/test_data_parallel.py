# SPDX-License-Identifier: Apache-2.0
"""`--data-parallel-size 2`: each engine compresses, and counts, what comes to it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from headkv_vllm.engine.metrics.definitions import (
    COMPRESSED_REQUESTS,
    COMPRESSION_SECONDS,
    FREED_BLOCKS,
)
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import NeedleSample, generate_samples
from tests.engine.helpers.server import Server, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

ARGUMENTS = [
    *("--attention-backend", "headkv", "--dtype", "float32", "--enforce-eager"),
    *("--block-size", "16", "--max-model-len", "4608", "--data-parallel-size", "2"),
    *("--additional-config", json.dumps({"headkv": {"budget": 128}})),
]
COMPRESSIONS = f"{COMPRESSION_SECONDS.name}_count"


def is_right(server: Server, sample: NeedleSample) -> bool:
    completion = server.client.completions.create(
        model=server.model, prompt=sample.prompt, temperature=0, max_tokens=32
    )
    return completion.choices[0].text.split() == sample.answer.split()


def by_engine(server: Server, name: str) -> list[float]:
    samples = [sample for sample in server.samples() if sample.name == name]
    return [s.value for s in sorted(samples, key=lambda sample: sample.labels["engine"])]


def test_both_engines_compress_and_count() -> None:
    asked = list(generate_samples("single", 1024, 8, seed=3))
    with Server(checkpoint_path(), *ARGUMENTS) as server:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(lambda sample: is_right(server, sample), asked))
        wait_for(lambda: server.metric(COMPRESSIONS) == 8)
        compressed = by_engine(server, COMPRESSED_REQUESTS.name)
        assert len(compressed) == 2 and sum(compressed) == 8 and min(compressed) > 0
        assert by_engine(server, COMPRESSIONS) == compressed
        num_full_blocks = (1024 - 8) // 16
        assert by_engine(server, FREED_BLOCKS.name) == [n * num_full_blocks for n in compressed]
