# SPDX-License-Identifier: Apache-2.0
"""The engine's part of the check on GPUs, run here on what engine there is."""

import pytest

from benchmarks import capacity, decode_step
from benchmarks.gpu_engine import Sizes, bars


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_is_measured() -> None:
    sizes = Sizes(
        decode_step.Case(2, 512, 128, shape="2-layer", num_rounds=1),
        capacity.QUICK,
        "2-layer",
        ttft_tokens=600,
        num_prompts=3,
    )
    measured = {bar.text: bar for bar in bars(sizes, {"enforce_eager": True})}
    assert len(measured) == 7
    assert all(bar.value is not None for bar in measured.values())
    for exact in ("unlike stock", "that are right", "preemptions of headkv"):
        assert [bar.holds for text, bar in measured.items() if exact in text] == [True]
