# SPDX-License-Identifier: Apache-2.0
"""vLLM's other features on compressed prompts: each gives what it gives without the other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.needle import checkpoint_path
from tests.engine.conftest import Engines
from tests.engine.helpers import inside
from tests.engine.helpers.inside import TokenIds
from tests.engine.helpers.prompts import needle_prompt

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {"budget": 128}
PROMPTS = [needle_prompt(900 + 13 * seed, seed=seed) for seed in range(4)]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}


def ask(
    llm: Any, prompts: list[TokenIds], adapter: str | None = None, **parameters: Any
) -> list[list[TokenIds]]:
    """All answers to each prompt."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(**{"temperature": 0, "max_tokens": 40, **parameters}),
        use_tqdm=False,
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
    )
    inside.check_integrity(llm)
    return [[list(answer.token_ids) for answer in output.outputs] for output in outputs]


def ask_for_one_of(llm: Any, prompts: list[TokenIds], texts: list[str]) -> list[str]:
    """Structured output: nothing else is allowed."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = SamplingParams(
        temperature=0, max_tokens=40, structured_outputs=StructuredOutputsParams(choice=texts)
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(inputs, sampling, use_tqdm=False)
    inside.check_integrity(llm)
    return [output.outputs[0].text.strip() for output in outputs]


def num_accepted_drafts(llm: Any) -> int:
    """Since the engine's start."""
    name = "vllm:spec_decode_num_accepted_tokens"
    (metric,) = (metric for metric in llm.get_metrics() if metric.name == name)
    return int(metric.value)


@pytest.fixture(scope="module")
def engine(engines: Engines) -> Iterator[EngineProcess]:
    running = engines.headkv(SETTINGS)
    yield running
    engines.end(running)


def test_speculation_by_ngrams_gives_the_same_tokens(
    engines: Engines, engine: EngineProcess
) -> None:
    expected = engine.call(ask, PROMPTS, ignore_eos=True)
    arguments = {"speculative_config": NGRAM, "disable_log_stats": False}
    speculating = engines.headkv(SETTINGS, **arguments)
    try:
        assert speculating.call(ask, PROMPTS, ignore_eos=True) == expected
        assert speculating.call(num_accepted_drafts) > 0
        assert speculating.call(inside.reset_prefix_cache)
        alone = [speculating.call(ask, [prompt], ignore_eos=True)[0] for prompt in PROMPTS]
        assert alone == expected
        # Drafts end at compression points, whatever is accepted of them.
        again = {"extra_args": {"headkv_compress_every": 16}, "ignore_eos": True}
        generating = engine.call(ask, PROMPTS, **again)
        assert speculating.call(ask, PROMPTS, **again) == generating
    finally:
        engines.end(speculating)


def test_structured_output_is_one_of_the_choices(engine: EngineProcess) -> None:
    choices = engine.call(inside.words, PROMPTS[0][40:46])
    assert set(engine.call(ask_for_one_of, PROMPTS, choices)) <= set(choices)


def test_samples_of_one_prompt_share_nothing_but_the_prompt(engine: EngineProcess) -> None:
    """Each is compressed for itself, and answers as it would alone with its seed."""
    sampled = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
    (several,) = engine.call(ask, PROMPTS[:1], n=3, **sampled)
    assert len({tuple(tokens) for tokens in several}) == 3
    (again,) = engine.call(ask, PROMPTS[:1], n=3, **sampled)
    assert again == several


def test_forgetting_the_prefix_cache_changes_no_answer(engine: EngineProcess) -> None:
    expected = engine.call(ask, PROMPTS)
    assert engine.call(inside.reset_prefix_cache)
    assert engine.call(ask, PROMPTS) == expected


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random weights, large enough to change answers."""
    folder: Path = tmp_path_factory.mktemp("adapter")
    config = json.loads((checkpoint_path() / "config.json").read_text())
    hidden, generator = config["hidden_size"], torch.Generator().manual_seed(0)
    out = config["num_attention_heads"] * config.get("head_dim", hidden // 4)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.2
        weights[f"{name}.lora_B.weight"] = torch.randn(out, 8, generator=generator) * 0.2
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def with_adapters(engines: Engines) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    arguments = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1, "block_size": 32}
    both = (engines.stock(**arguments), engines.headkv({"budget": 0}, **arguments))
    yield both
    for engine in both:
        engines.end(engine)


def test_lora_adapters_work_as_in_stock_vllm(
    with_adapters: tuple[EngineProcess, EngineProcess], adapter: Path
) -> None:
    """Off, answers are stock's; on, the adapter's own prompt is compressed."""
    stock, headkv = with_adapters
    expected = stock.call(ask, PROMPTS, str(adapter), ignore_eos=True)
    assert headkv.call(ask, PROMPTS, str(adapter), ignore_eos=True) == expected
    assert headkv.call(ask, PROMPTS, ignore_eos=True) != expected
    asked = {"extra_args": {"headkv_budget": 128}, "ignore_eos": True}
    together = headkv.call(ask, PROMPTS, str(adapter), **asked)
    alone = [headkv.call(ask, [prompt], str(adapter), **asked)[0] for prompt in PROMPTS]
    assert together == alone
