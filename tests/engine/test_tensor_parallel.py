# SPDX-License-Identifier: Apache-2.0
"""Each tensor-parallel rank compresses its own KV heads, in as many head blocks as it has."""

from typing import Any

import pytest

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import generate_samples
from tests.engine.conftest import COMMON, Engines
from tests.engine.helpers import inside

BUDGET = 128
SHORT_NEEDLES = {"pooling": "max", "kernel_size": 7}


@pytest.mark.parametrize(
    ("num_kv_heads", "world_size", "expected"),
    [
        (4, 1, [[0, 1, 2, 3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (4, 4, [[0], [1], [2], [3]]),
        (2, 4, [[0], [0], [1], [1]]),
        (1, 3, [[0], [0], [0]]),
    ],
    ids=["one rank", "two heads each", "one head each", "replicated", "one head for all"],
)
def test_heads_of_a_rank(num_kv_heads: int, world_size: int, expected: list[list[int]]) -> None:
    ranks = range(world_size)
    assert [worker_kv_heads(num_kv_heads, rank, world_size) for rank in ranks] == expected


def allocations(llm: Any) -> list[list[tuple[int, list[list[int]]]]]:
    """For each worker, K and n[L, H] of every length of prompt that it has compressed."""
    return list(llm.collective_rpc(_allocations_of_worker))


def _allocations_of_worker(worker: Any) -> list[tuple[int, list[list[int]]]]:
    ((group,),) = worker.model_runner.attn_groups
    builder = group.get_metadata_builder()
    builder._planner.check_integrity()
    static = builder._layers.static
    static.check_integrity()
    return [(k, allocation.tolist()) for (_, k, _), allocation in static._results.items()]


def part_right(engine: EngineProcess) -> float:
    asked = list(generate_samples("multi-query", 1024, 8, seed=3))
    generated = engine.call(texts, [sample.prompt for sample in asked], max_tokens=32)
    grades = [grade(s.answer, text) for s, text in zip(asked, generated, strict=True)]
    return sum(g.questions_right for g in grades) / sum(g.questions for g in grades)


def texts(llm: Any, prompts: list[str], max_tokens: int) -> list[str]:
    tokens = inside.generate(llm, prompts, max_tokens)
    return [llm.get_tokenizer().decode(answer) for answer in tokens]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_answer_from_their_own_head_blocks(engines: Engines) -> None:
    one = engines.headkv({"budget": BUDGET, **SHORT_NEEDLES})
    two = EngineProcess(
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        **{"model": str(checkpoint_path()), **COMMON},
        attention_backend="HEADKV",
        additional_config={"headkv": {"budget": 2 * BUDGET, **SHORT_NEEDLES}},
        tensor_parallel_size=2,
    )
    try:
        assert part_right(one) >= 0.9
        # A rank allocates only its own head blocks, half of them here. The model retrieves
        # with one head, which gets with twice the budget what it has in one process.
        assert part_right(two) >= 0.9
        (whole,) = one.call(allocations)
        first, second = two.call(allocations)
    finally:
        two.stop()
    for rank, num_kv_heads, budget in (
        (whole, 4, BUDGET),
        (first, 2, 2 * BUDGET),
        (second, 2, 2 * BUDGET),
    ):
        ((k, allocation),) = rank
        assert k == (budget - 8) // 16
        assert [len(layer) for layer in allocation] == [num_kv_heads] * 4
        assert sum(map(sum, allocation)) == k * 4 * num_kv_heads
    assert first != second
