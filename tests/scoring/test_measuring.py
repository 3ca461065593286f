# SPDX-License-Identifier: Apache-2.0
"""The estimator against a slow, obvious one: full attention matrices, and loops."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from headkv_vllm.errors import ScoringError, UnsupportedError
from headkv_vllm.scoring.attention_rows import ATTENTION, last_rows, last_rows_plain
from headkv_vllm.scoring.measuring import measure
from headkv_vllm.scoring.methods import METHODS
from headkv_vllm.scoring.prompts import PromptTokens

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    "llama-mha": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "qwen2": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SIZES, num_attention_heads=8, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=None
    ),
    "phi3": Phi3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "gemma": GemmaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=1, head_dim=16),
}


def random_model(name, implementation, seed=0):
    """Weights large enough that heads prefer few positions, and answers vary."""
    torch.manual_seed(seed)
    config = deepcopy(CONFIGS[name])  # a config holds the attention of the last model made of it
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
    return model.eval()


def random_prompt(seed, num_tokens=40, num_answer_tokens=6):
    rng = np.random.default_rng(seed)
    start = int(rng.integers(1, num_tokens - 15))
    return PromptTokens(
        ids=tuple(rng.integers(3, VOCABULARY, num_tokens).tolist()),
        evidence=(*range(start, start + 5), *range(start + 8, start + 12)),
        answer_ids=tuple(range(num_answer_tokens)),
    )


@torch.inference_mode()
def slow_scores(model, prompt, method, stop_ids=frozenset()):
    """What `measure` computes, with whole attention matrices and one number at a time."""
    ids, generated = list(prompt.ids), []
    config = model.config
    scores = np.zeros((config.num_hidden_layers, config.num_attention_heads))
    evidence = set(prompt.evidence)
    for _ in prompt.answer_ids:
        output = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
        token = int(output.logits[0, -1].argmax())
        if token in stop_ids:
            break
        for layer, head in np.ndindex(*scores.shape):
            row = output.attentions[layer][0, head, -1].tolist()
            ranked = sorted(range(len(row)), key=lambda position: -row[position])
            if method == "r2":
                for position in ranked[: len(evidence)]:
                    if position in evidence:
                        scores[layer, head] += row[position] / len(evidence)
            elif ranked[0] in evidence and prompt.ids[ranked[0]] == token:
                scores[layer, head] += 1 / len(evidence)
        ids.append(token)
        generated.append(token)
    return tuple(generated), scores


def say_few_words(model, prompt):
    """`prompt` in four tokens, which `model` says too: a random one copies by chance alone."""
    with torch.no_grad():
        model.lm_head.weight[:3] = 0
        model.lm_head.weight[7:] = 0
    return replace(prompt, ids=tuple(3 + token % 4 for token in prompt.ids))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimator_agrees_with_the_slow_one(name, method):
    eager, ours = random_model(name, "eager"), random_model(name, ATTENTION)
    total = 0.0
    for seed in range(3):
        prompt = random_prompt(seed)
        if method == "r":
            prompt = say_few_words(eager, say_few_words(ours, prompt))
        expected_tokens, expected = slow_scores(eager, prompt, method)
        measured = measure(ours, prompt, method, frozenset(), prefill_chunk=13)
        assert measured.generated == expected_tokens
        np.testing.assert_allclose(measured.scores, expected, atol=1e-5)
        total += expected.sum()
    assert total > 0.1


def test_an_answer_ends_before_a_stop_token():
    ours, eager = random_model("qwen3", ATTENTION), random_model("qwen3", "eager")
    prompt = random_prompt(1)
    said, _ = slow_scores(eager, prompt, "r2")
    stop = frozenset({said[3]})
    expected_tokens, expected = slow_scores(eager, prompt, "r2", stop)
    measured = measure(ours, prompt, "r2", stop)
    assert measured.generated == expected_tokens == said[: said.index(said[3])]
    np.testing.assert_allclose(measured.scores, expected, atol=1e-5)


def test_no_step_is_no_score():
    ours = random_model("llama", ATTENTION)
    measured = measure(ours, random_prompt(0), "r2", frozenset(range(VOCABULARY)))
    assert measured.generated == () and not measured.scores.any()


def test_bfloat16_is_near():
    prompt = random_prompt(2, num_answer_tokens=1)
    full = measure(random_model("llama", ATTENTION), prompt, "r2", frozenset())
    half = measure(random_model("llama", ATTENTION).bfloat16(), prompt, "r2", frozenset())
    np.testing.assert_allclose(half.scores, full.scores, atol=0.05)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_rows_match_the_plain_twin(group):
    generator = torch.Generator().manual_seed(group)
    query = torch.randn(1, 4, 3, 8, generator=generator) * 3
    key = torch.randn(1, 4 // group, 20, 8, generator=generator)
    for scaling in (None, 0.7):
        rows = last_rows(query, key, scaling)
        torch.testing.assert_close(rows, last_rows_plain(query, key, scaling))
        torch.testing.assert_close(rows.sum(1), torch.ones(4))


def test_a_model_that_computes_no_numbers_is_an_error():
    model = random_model("llama", ATTENTION)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(ScoringError, match="no finite numbers in float32"):
        measure(model, random_prompt(0), "r2", frozenset())


def test_another_attention_hands_over_no_rows():
    with pytest.raises(UnsupportedError, match=r"layers \[0, 1, 2\] have no attention weights"):
        measure(random_model("llama", "sdpa"), random_prompt(0), "r2", frozenset())


def test_a_sliding_window_is_refused():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    with pytest.raises(UnsupportedError, match=r"layer 0 attends 16 of 40 tokens"):
        measure(model, random_prompt(0), "r2", frozenset())
