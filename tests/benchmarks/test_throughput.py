# SPDX-License-Identifier: Apache-2.0
"""Loads for two servers, and what is concluded from their outcomes."""

from dataclasses import replace

import pytest

from benchmarks.harness.servers import Load, Outcome, count, outcome
from benchmarks.throughput import (
    FULL,
    Bench,
    Case,
    Result,
    bars,
    crossover,
    main_case,
    notes,
    rate_cases,
    run_all,
)

METRICS = """# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0"} 3.0
vllm:num_preemptions_total{engine="1"} 4.0
# TYPE vllm:other counter
vllm:other_total{engine="0"} 9.0
"""
SAVED = {
    "output_throughput": 100.0,
    "request_throughput": 2.0,
    "p50_ttft_ms": 10.0,
    "p99_ttft_ms": 20.0,
    "p50_itl_ms": 3.0,
    "p99_itl_ms": 4.0,
    "duration": 5.0,
}


class FakeServer:
    """Answers at a rate, and remembers what it was sent."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.sent: list[tuple[Load, dict[str, int] | None]] = []

    def run(self, load: Load, arguments: dict[str, int] | None) -> Outcome:
        self.sent.append((load, arguments))
        return at_rate(self.rate)


def at_rate(rate: float) -> Outcome:
    return outcome({**SAVED, "output_throughput": rate, "request_throughput": rate / 256}, 0)


def result(name: str, num_tokens: int, ratio: float) -> Result:
    case = Case(name, replace(FULL.small, prompt_tokens=num_tokens), 256)
    return Result(case, {"headkv": at_rate(100 * ratio), "stock": at_rate(100)})


def test_preemptions_are_those_of_all_engines():
    assert count(METRICS, "vllm:num_preemptions_total") == 7


def test_a_metric_that_is_not_there_is_not_zero():
    with pytest.raises(ValueError, match="vllm:no_such_total"):
        count(METRICS, "vllm:no_such_total")


def test_columns_have_the_numbers_that_vllm_saved():
    cells = outcome(SAVED, 7).cells
    assert list(cells.values()) == [100, 2, 10, 20, 3, 4, 7, 5]
    assert cells["TTFT p99 ms"] == 20 and cells["ITL p50 ms"] == 3


def test_the_pool_holds_four_requests_of_the_main_case():
    assert FULL.num_blocks - 1 == 4 * (4096 + 1024) // 32


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(256, 0.5), (1024, 0.75), (2048, 1.25)], 1536),
        ([(256, 1.5), (1024, 2.0)], 256),
        ([(256, 0.5), (1024, 0.9)], None),
        ([(256, 0.5), (1024, 1.0)], 1024),
    ],
)
def test_the_crossover_lies_where_the_ratio_reaches_one(points, expected):
    assert crossover(points) == expected


def test_rates_lie_below_at_and_above_what_stock_answers():
    rates = [case.load.rate for case in rate_cases(FULL, 3.0)]
    assert min(rates) < 3.0 < max(rates) and 3.0 in rates


def test_both_sides_get_the_same_prompts_and_no_case_those_of_another():
    headkv, stock = FakeServer(300), FakeServer(100)
    results = list(run_all(Bench({"headkv": headkv, "stock": stock}), FULL))
    assert [load for load, _ in headkv.sent] == [load for load, _ in stock.sent]
    assert len({load.seed for load, _ in stock.sent}) == len(results)
    assert all(arguments is None for _, arguments in stock.sent)
    assert all(arguments == {"headkv_budget": FULL.budget} for _, arguments in headkv.sent)


@pytest.mark.parametrize(("ratio", "holds"), [(3.0, True), (2.9, False)])
def test_the_bar_is_on_the_main_case(ratio, holds):
    first = Result(main_case(FULL), result("", 4096, ratio).outcomes)
    assert [bar.holds for bar in bars([first, result("rate", 1024, 9.0)])] == [holds]


def test_the_notes_name_the_cases_that_lose():
    results = [result("prompt length", 256, 0.5), result("prompt length", 1024, 1.5)]
    text = "\n".join(notes(FULL, [*results, result("shared prompt", 4096, 0.3)]))
    assert "from about 640 prompt tokens" in text
    assert "prompt length (256), shared prompt (4,096)" in text
