# SPDX-License-Identifier: Apache-2.0
"""The engine's part of the check on GPUs, run here on what engine there is."""

import json
from dataclasses import asdict

import pytest

from benchmarks.gpu_engine import Sizes, bars, from_json, measure, rows


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_is_measured() -> None:
    sizes = Sizes(
        "2-layer",
        num_requests=2,
        prompt_tokens=512,
        budget=128,
        num_steps=4,
        ttft_tokens=600,
        num_long=1,
        max_num_batched_tokens=1024,
    )
    told = []
    on_cpu = {"enforce_eager": True, "dtype": "float32", "block_size": 32}
    found = measure(sizes, lambda name, value: told.append(name), **on_cpu)
    assert len(told) == 7
    assert from_json(json.loads(json.dumps(asdict(found)))) == found
    assert len(bars(sizes, found)) == 5 and all(bar.value for bar in bars(sizes, found))
    by_side = {row["side"]: row for row in rows(found)}
    assert list(by_side) == ["stock", "twin", "headkv", "off"]
    assert all(row["step, ms"] > 0 for row in by_side.values())
    # The compressed prompts hold about as much of the pool as prompts that were never longer.
    used = {side: row["part of the pool"] for side, row in by_side.items()}
    assert used["twin"] <= used["headkv"] < 0.5 * used["stock"] <= used["off"]
