# SPDX-License-Identifier: Apache-2.0
"""The engine's part of `scripts/gpu-check`: its answers, and its times beside stock vLLM's.

Three engines at once, with pools of 15 GiB each: it takes a GPU of 80 GiB.
"""

from dataclasses import dataclass
from typing import Any, Final

from benchmarks import capacity, decode_step, prefill
from benchmarks.harness.pairs import Pairs
from benchmarks.harness.report import Bar
from benchmarks.harness.sides import BLOCK_SIZE, engines, sides
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples

FLAGS: Final[dict[str, Any]] = {
    "enforce_eager": False,  # with CUDA graphs
    "gpu_memory_utilization": 0.28,  # three engines at once
    "async_scheduling": False,  # each step's time is its own
    "one_by_one": True,
}


@dataclass(frozen=True)
class Sizes:
    """decode, capacity: cases of the benchmarks by these names. ttft_tokens: of the prompts whose
    first token is waited for, `num_prompts` on each side; as many are answered.
    """

    decode: decode_step.Case
    capacity: capacity.Load
    shape: str
    ttft_tokens: int
    num_prompts: int


FULL: Final = Sizes(
    decode_step.Case(16, 8192, 1024, shape="qwen3-0.6b", num_rounds=30),
    capacity.Load(),
    "qwen3-0.6b",
    ttft_tokens=32_768,
    num_prompts=16,
)


def bars(sizes: Sizes = FULL, flags: dict[str, Any] = FLAGS) -> list[Bar]:
    """Everything is measured, one part after the other."""
    (steps,) = decode_step.measure_all([sizes.decode], None, **flags)
    counts = capacity.measure_sides(sizes.capacity, "2-layer", **flags)
    tokens = f"{sizes.ttft_tokens:,}"
    return [
        *answer_bars(sizes.num_prompts, flags),
        Bar("engine step / short twin's", steps.against("twin").ratio, 1.05, at_most=True),
        Bar("stock's engine step / headkv's", steps.stock_ratio, 1, at_most=False),
        Bar(f"TTFT at {tokens} tokens / stock's", ttft(sizes, flags).ratio, 1.03, at_most=True),
        *capacity.bars(counts["headkv"], counts["stock"]),
    ]


def ttft(sizes: Sizes, flags: dict[str, Any]) -> Pairs:
    """Times to the first token, in turns; the first prompt of each side is a warm-up."""
    case = prefill.Case(sizes.ttft_tokens, sizes.num_prompts, 1.03)
    num_blocks = sizes.ttft_tokens // BLOCK_SIZE + 64
    limits = (sizes.ttft_tokens + 64, 8)
    with sides(
        prefill.NAMES, sizes.shape, *limits, num_gpu_blocks_override=num_blocks, **flags
    ) as started:
        seconds = [
            tuple(prefill.read(started[name], case, index) for name in prefill.NAMES)
            for index in range(sizes.num_prompts + 1)
        ][1:]
    ours, theirs = zip(*seconds, strict=True)
    return Pairs(ours, theirs)


def answer_bars(num_prompts: int, flags: dict[str, Any]) -> list[Bar]:
    """The needle model's answers: not compressed as stock vLLM's, compressed still right."""
    samples = list(generate_samples("multi-query", 1000, num_prompts, seed=0))
    prompts = [sample.prompt for sample in samples]
    common = {"model": str(checkpoint_path()), "max_model_len": 2048, "dtype": "bfloat16", **flags}
    common["num_gpu_blocks_override"] = 2048
    ours = {"attention_backend": "HEADKV", "additional_config": {"headkv": {"budget": 256}}}
    one_by_one = common.pop("one_by_one", False)
    with engines({"headkv": common | ours, "stock": common}, one_by_one) as started:
        compressed = started["headkv"](answers, prompts, None)
        off = started["headkv"](answers, prompts, {"headkv_budget": 0})
        expected = started["stock"](answers, prompts, None)
    differ = sum(one != other for one, other in zip(off, expected, strict=True))
    grades = [grade(one.answer, text) for one, text in zip(samples, compressed, strict=True)]
    asked, right = (
        sum(getattr(g, name) for g in grades) for name in ("questions", "questions_right")
    )
    return [
        Bar(f"prompts of {num_prompts} answered unlike stock, not compressed", differ, 0, True),
        Bar(f"answers of {asked} that are right, budget 256", right, 0.9 * asked, False),
    ]


def answers(llm: Any, prompts: list[str], asked: dict[str, Any] | None) -> list[str]:
    """Inside the engine. asked: `vllm_xargs`, as in HTTP bodies."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=32, extra_args=asked)
    return [output.outputs[0].text for output in llm.generate(prompts, sampling, use_tqdm=False)]
