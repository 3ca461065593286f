# SPDX-License-Identifier: Apache-2.0
"""What is run before the first request; that it compiles all is in `test_gpu_backends.py`."""

import inspect

import pytest
from vllm.model_executor.warmup.kernel_warmup import kernel_warmup
from vllm.v1.worker.gpu_worker import Worker

from headkv_vllm.config import Settings
from headkv_vllm.engine.attention.warm_up import warm_up_steps


@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("min_blocks", [1, 3])
@pytest.mark.parametrize("window", range(2, 66))
def test_rows_have_room_for_every_step(window: int, min_blocks: int, block_size: int) -> None:
    for step in warm_up_steps(
        Settings(budget=1024, window=window, min_blocks=min_blocks), block_size, 4
    ):
        row = step.row
        assert step.num_computed + step.num_new <= len(row.blocks) * block_size
        num_full = (row.num_prompt_tokens - window) // block_size
        assert min_blocks <= len(row.private_blocks) < num_full
        assert 0 not in (*row.private_blocks, *row.blocks)
        assert not set(row.private_blocks) & set(row.blocks)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_single_tokens_come_in_batches_of_all_powers_of_two(most: int, sizes: list[int]) -> None:
    first, *single, last = warm_up_steps(Settings(budget=1024), 16, most)
    assert [step.num_reqs for step in single] == sizes
    assert (first.num_computed, first.num_reqs, last.num_reqs) == (0, 1, 1)


def test_vllm_warms_up_what_is_registered_before_it_captures_graphs_and_serves() -> None:
    """The engines in `test_gpu_backends.py` run on CPUs, where this order is written down again."""
    order = inspect.getsource(Worker.compile_or_warm_up_model)
    assert order.index("kernel_warmup(self)") < order.index("warmup_kernels(")
    assert order.index("warmup_kernels(") < order.index("capture_model()")
    assert "registry.warmup()" in inspect.getsource(kernel_warmup)
