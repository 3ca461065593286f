# SPDX-License-Identifier: Apache-2.0
"""The engines of `gpu_smoke`: how each one is started, and what it is asked.

The needle model answers the same questions in every engine: compressed, with a budget of 0, once
more from the prefix cache, and with all requests preempted on the way.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from headkv_vllm.engine.metrics.worker_counts import worker_counts
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import generate_samples

NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS, BUDGET = 20, 1024, 32, 128
LOWEST_SHARE_RIGHT: Final = 0.9
"""Of all questions. On CPUs 78 of 80 are answered right, by stock vLLM and by ours alike."""
MOST_UNLIKE: Final = 3
"""Answers that two stock backends may give differently in bfloat16, and so may ours."""

COMMON: Final[dict[str, Any]] = {
    "dtype": "bfloat16",
    "block_size": 16,
    "max_model_len": 2048,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 2**29,
    "gpu_memory_utilization": 0.1,  # what must be free; several engines run at once
    "enforce_eager": True,
}
SIZES: Final = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}
GRAPHS: Final[dict[str, Any]] = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", **SIZES},
}
COMPILED: Final[dict[str, Any]] = {"enforce_eager": False, "compilation_config": SIZES}
"""As vLLM serves by default: torch.compile, piecewise graphs for prompts, full ones for decode."""
OURS: Final[dict[str, Any]] = {
    "attention_backend": "HEADKV",
    "additional_config": {"headkv": {"budget": BUDGET}},
}
ONLY_TRITON: Final = {"attention_config": {"flash_attn_version": 2}}
"""The slim vLLM that travels to GPUs has FlashAttention 3 alone, so ours takes its own kernels."""
NGRAM: Final = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
V1: Final = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


@dataclass(frozen=True)
class Engine:
    """arguments: of `vllm.LLM`. impl: of its layers. is_dry: it runs on vLLM's CPU build, too."""

    arguments: dict[str, Any]
    impl: str
    environment: dict[str, str] = field(default_factory=dict)
    is_dry: bool = False

    @property
    def is_ours(self) -> bool:
        return self.arguments["attention_backend"] == "HEADKV"


FLASH, TRITON = "HeadKVFlashAttentionImpl", "HeadKVTritonImpl"
STOCK: Final = "stock FLASH_ATTN"
ENGINES: Final = {
    STOCK: Engine({"attention_backend": "FLASH_ATTN"}, "FlashAttentionImpl", is_dry=True),
    "stock TRITON_ATTN": Engine({"attention_backend": "TRITON_ATTN"}, "TritonAttentionImpl"),
    "headkv flash": Engine(OURS, FLASH, is_dry=True),
    "headkv triton": Engine(OURS | ONLY_TRITON, TRITON),
    "headkv flash graphs": Engine(OURS | GRAPHS, FLASH),
    "headkv triton graphs": Engine(OURS | ONLY_TRITON | GRAPHS, TRITON),
    "headkv flash graphs V1": Engine(OURS | GRAPHS, FLASH, environment=V1),
    "headkv flash compiled": Engine(OURS | COMPILED, FLASH),
    "headkv triton fp8": Engine(OURS | GRAPHS | {"kv_cache_dtype": "fp8"}, TRITON),
    "headkv flash ngram": Engine(OURS | GRAPHS | {"speculative_config": NGRAM}, FLASH),
}


def run(engine: Engine, is_dry: bool) -> dict[str, Any]:
    """Start the engine in this process, ask it, and say what came of it."""
    from vllm import LLM

    arguments = COMMON | engine.arguments
    if is_dry and not engine.is_ours:
        arguments |= {"attention_backend": None, "block_size": 32}
    started = time.perf_counter()
    llm = LLM(model=str(checkpoint_path()), **arguments)
    config = llm.llm_engine.vllm_config
    layers = config.compilation_config.static_forward_context.values()
    found: dict[str, Any] = {
        "impl": "/".join(sorted({type(layer.impl).__name__ for layer in layers})),
        "runner": "V2" if config.use_v2_model_runner else "V1",
        "graphs": config.compilation_config.cudagraph_mode.name,
        "start_s": round(time.perf_counter() - started, 1),
    }
    if not is_dry:
        assert found["impl"] == engine.impl, f"{found['impl']} serves, not {engine.impl}"
        assert (found["runner"] == "V1") == (engine.environment == V1), "the other runner"
    started = time.perf_counter()
    found |= ask(llm) if engine.is_ours else {"texts": answers(llm)}
    found |= graded(found["texts"])
    found["answer_s"] = round(time.perf_counter() - started, 1)
    return found


def ask(llm: Any) -> dict[str, Any]:
    """What a compressing engine is asked."""
    found: dict[str, Any] = {"texts": answers(llm)}
    found["compressed"] = worker_counts(llm.llm_engine.vllm_config).num_compressions
    found["texts again"] = answers(llm)
    found["texts preempted"] = answers(llm, preempts=True)
    found["texts off"] = answers(llm, {"headkv_budget": 0})
    return found


def answers(llm: Any, asked: dict[str, Any] | None = None, preempts: bool = False) -> list[str]:
    """Of all prompts, in order. preempts: all requests lose their blocks after some steps."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, extra_args=asked)
    engine, texts = llm.llm_engine, dict[str, str]()
    for index, sample in enumerate(samples()):
        engine.add_request(str(index), sample.prompt, sampling)
    num_steps = 0
    while engine.has_unfinished_requests():
        texts |= {one.request_id: one.outputs[0].text for one in engine.step()}
        num_steps += 1
        if preempts and num_steps == NUM_PROMPTS:
            assert llm.reset_prefix_cache(reset_running_requests=True)
    return [texts[str(index)] for index in range(NUM_PROMPTS)]


def samples() -> list[Any]:
    return list(generate_samples("multi-query", PROMPT_TOKENS, NUM_PROMPTS, seed=0))


def graded(texts: list[str]) -> dict[str, int]:
    grades = [grade(one.answer, text) for one, text in zip(samples(), texts, strict=True)]
    return {
        "questions_right": sum(one.questions_right for one in grades),
        "questions": sum(one.questions for one in grades),
    }


def verdict(name: str, found: dict[str, Any], stock: list[str] | None) -> tuple[bool, str]:
    """Whether an engine answers as it should, and what it answers. stock: answers, if any."""
    right, asked = found["questions_right"], found["questions"]
    is_good = right >= LOWEST_SHARE_RIGHT * asked
    parts = [f"{right} of {asked} questions right"]
    if ENGINES[name].is_ours:
        is_good &= found["compressed"] == NUM_PROMPTS
        parts.append(f"{found['compressed']} prompts compressed")
        pairs = {
            "from the prefix cache unlike before": (found["texts again"], found["texts"]),
            "unlike before after preemption": (found["texts preempted"], found["texts"]),
        }
        if "kv_cache_dtype" not in ENGINES[name].arguments:
            pairs[f"with budget 0 unlike {STOCK}"] = (found["texts off"], stock)
    else:
        pairs = {f"unlike {STOCK}": (found["texts"], stock)}
    for how, (texts, expected) in pairs.items():
        if expected is not None:
            num = sum(one != other for one, other in zip(texts, expected, strict=True))
            is_good &= num <= MOST_UNLIKE
            parts.append(f"{num} {how}")
    return is_good, ", ".join(parts)
