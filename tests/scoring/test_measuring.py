# SPDX-License-Identifier: Apache-2.0
"""The estimator against a slow, obvious one: full attention matrices, and loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headkv_vllm.errors import ScoringError, UnsupportedError
from headkv_vllm.scoring import measuring
from headkv_vllm.scoring.attention_rows import (
    ATTENTION,
    AnswerRows,
    row_logits,
    weighted_values,
)
from headkv_vllm.scoring.attention_scores import STEP_SCORES
from headkv_vllm.scoring.measuring import measure
from tests.scoring import reference
from tests.scoring.random_models import (
    CONFIGS,
    VOCABULARY,
    full_layers,
    random_model,
    random_prompt,
)

NEVER = frozenset()
"""No token ends an answer."""


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(measuring, "MAX_EXTRA_TOKENS", 2)


@torch.inference_mode()
def slow_answer(model, prompt, num_tokens, stop_ids=NEVER):
    """The greedy answer, each token from a pass over all before it."""
    ids = list(prompt.ids)
    for _ in range(num_tokens):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return tuple(ids[len(prompt.ids) :])


@torch.inference_mode()
def slow_scores(model, prompt, method, answer):
    """What `measure` computes, with whole attention matrices and one number at a time."""
    ids = list(prompt.ids)
    config = model.config
    scores = np.zeros((config.num_hidden_layers, config.num_attention_heads))
    evidence = set(prompt.evidence)
    for token in answer:
        output = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
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
    return scores[full_layers(config)]


def say_few_words(model, prompt):
    """`prompt` in four tokens, which `model` says too: a random one copies by chance alone."""
    with torch.no_grad():
        model.lm_head.weight[:3] = 0
        model.lm_head.weight[7:] = 0
    few = {"ids": tuple(3 + token % 4 for token in prompt.ids)}
    return replace(prompt, **few, answer_ids=tuple(3 + token % 4 for token in prompt.answer_ids))


@pytest.mark.parametrize("method", STEP_SCORES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimator_agrees_with_the_slow_one(name, method):
    eager, ours = random_model(name, "eager"), random_model(name, ATTENTION)
    total = 0.0
    for seed in range(3):
        prompt = random_prompt(seed)
        if method == "r":
            prompt = say_few_words(eager, say_few_words(ours, prompt))
        said = slow_answer(eager, prompt, len(prompt.answer_ids) + 2)
        for answers, answer in (("forced", prompt.answer_ids), ("generated", said)):
            measured = measure(ours, prompt, method, answers, NEVER, prefill_chunk=13)
            expected = slow_scores(eager, prompt, method, answer)
            assert measured.answer == answer
            np.testing.assert_allclose(measured.scores, expected, atol=1e-5)
            total += expected.sum()
        assert measured.choices == said
    assert total > 0.1


@pytest.mark.parametrize("method", ["grad", *STEP_SCORES])
def test_what_the_model_says_by_itself_scores_the_same_when_it_is_forced(method):
    model = random_model("llama", ATTENTION)
    prompt = random_prompt(4)
    generated = measure(model, prompt, method, "generated", NEVER)
    again = replace(prompt, answer_ids=generated.answer)
    forced = measure(model, again, method, "forced", NEVER)
    assert forced.choices == forced.answer == generated.answer == generated.choices
    np.testing.assert_array_equal(forced.scores, generated.scores)
    assert forced.agreement == 1


def test_an_expected_answer_agrees_where_the_model_would_say_the_same():
    model = random_model("llama", ATTENTION)
    prompt = random_prompt(4)
    first = slow_answer(model, prompt, 1)
    other = (3 + first[0] % 60,)
    second = slow_answer(model, replace(prompt, ids=prompt.ids + other), 1)
    measured = measure(model, replace(prompt, answer_ids=other + second), "r2", "forced", NEVER)
    assert measured.choices == first + second
    assert measured.agreement == 1 / 2


def test_an_answer_ends_before_a_stop_token():
    ours, eager = random_model("qwen3", ATTENTION), random_model("qwen3", "eager")
    prompt = random_prompt(1)
    said = slow_answer(eager, prompt, 8)
    stop = frozenset({said[3]})
    measured = measure(ours, prompt, "r2", "generated", stop)
    assert measured.answer == measured.choices == said[: said.index(said[3])]
    np.testing.assert_allclose(
        measured.scores, slow_scores(eager, prompt, "r2", measured.answer), atol=1e-5
    )


@pytest.mark.parametrize("method", ["grad", *STEP_SCORES])
def test_no_step_is_no_score(method):
    ours = random_model("llama", ATTENTION)
    measured = measure(ours, random_prompt(0), method, "generated", frozenset(range(VOCABULARY)))
    assert measured.answer == () and not measured.scores.any() and measured.agreement == 0


def test_bfloat16_is_near():
    prompt = random_prompt(2, num_answer_tokens=1)
    full = measure(random_model("llama", ATTENTION), prompt, "r2", "forced", NEVER)
    half = measure(random_model("llama", ATTENTION).bfloat16(), prompt, "r2", "forced", NEVER)
    np.testing.assert_allclose(half.scores, full.scores, atol=0.05)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_match_the_plain_twin(group, num_rows):
    generator = torch.Generator().manual_seed(group)
    query = torch.randn(4, num_rows, 8, generator=generator) * 3
    prompt_key = torch.randn(4 // group, 20, 8, generator=generator)
    key = torch.randn(4 // group, num_rows, 8, generator=generator)
    for scale, window in ((0.35, None), (0.7, 20), (0.7, 2), (0.7, None)):
        rows = AnswerRows(query, key, key, scale, window)
        logits = row_logits(rows, prompt_key)
        torch.testing.assert_close(logits, reference.row_logits(rows, prompt_key))
    weights = logits.softmax(-1)
    values = torch.cat([prompt_key, key], 1).repeat_interleave(group, 0)
    torch.testing.assert_close(weighted_values(weights, prompt_key, key), weights @ values)


def test_a_model_that_computes_no_numbers_is_an_error():
    model = random_model("llama", ATTENTION)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    for answers in ("forced", "generated"):
        with pytest.raises(ScoringError, match="no finite numbers in float32"):
            measure(model, random_prompt(0), "r2", answers, NEVER)


def test_another_attention_hands_over_no_rows():
    with pytest.raises(UnsupportedError, match="the model's attention implementation is sdpa"):
        measure(random_model("llama", "sdpa"), random_prompt(0), "r2", "forced", NEVER)
