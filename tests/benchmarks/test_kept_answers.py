# SPDX-License-Identifier: Apache-2.0
"""Answers from a part of the prompt, without an engine."""

import numpy as np
import pytest
import torch

from benchmarks.kept_answers import KeptAttention, ReadWindow
from headkv_vllm.budgets.allocation import allocate_head_blocks
from headkv_vllm.budgets.request import request_budget
from headkv_vllm.config import Settings
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import ATTENTION
from headkv_vllm.scoring.attention_scores import FullAttention
from tests.scoring.random_models import random_model, random_prompt

BLOCK_SIZE = 4
SCORES = np.array([[3.0, 0.0], [1.0, 2.0], [0.5, 0.5]])


@pytest.fixture(scope="module")
def prompt():
    return random_prompt(3, num_tokens=150)


@pytest.fixture(scope="module")
def window(prompt):
    model = random_model("llama", ATTENTION)
    return ReadWindow.from_prompt(ReadPrompt.read(model, prompt.ids), prompt.ids)


def test_the_last_tokens_are_read_as_before(window):
    for index, entries in enumerate(window.layers):
        keys, values = window.prompt.layer(index)
        torch.testing.assert_close(entries.keys[:, :-1], keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entries.values[:, :-1], values, atol=1e-4, rtol=1e-4)


def test_with_all_entries_the_answer_is_the_whole_caches(window, prompt):
    kept = window.kept(SCORES, Settings(budget=0), BLOCK_SIZE)
    assert kept.all()
    with torch.no_grad():
        full = window.prompt.answer(prompt.answer_ids, FullAttention(window.prompt))
        same = window.prompt.answer(prompt.answer_ids, KeptAttention(window.prompt, kept))
    torch.testing.assert_close(same, full)


@pytest.mark.parametrize("after", [0, 5])
def test_heads_keep_their_allocation_and_the_end_of_the_prompt(window, prompt, after):
    settings = Settings(budget=40, window=8)
    kept = window.kept(SCORES, settings, BLOCK_SIZE, after)
    protected = settings.model_copy(update={"window": 8 + after})
    budget = request_budget(protected, len(prompt.ids), BLOCK_SIZE)
    candidates = budget.num_full_blocks * BLOCK_SIZE
    assert kept[..., candidates:].all() and len(prompt.ids) - candidates >= 8 + after
    expected = BLOCK_SIZE * allocate_head_blocks(SCORES, budget, settings)
    assert (kept[..., :candidates].sum(-1).numpy() == expected).all()


def test_a_head_keeps_what_its_window_attends_most(window, prompt):
    """Of a kernel of one position, so that the choice is that of the plain attention."""
    settings = Settings(budget=40, window=8, kernel_size=1)
    kept = window.kept(SCORES, settings, BLOCK_SIZE)
    candidates = request_budget(settings, len(prompt.ids), BLOCK_SIZE).num_full_blocks * BLOCK_SIZE
    entries = window.layers[1]
    query = entries.query[:, -8:].unflatten(0, (2, -1))[1]
    logits = query @ entries.keys[1].T * entries.scale
    later = torch.ones(8, len(prompt.ids), dtype=torch.bool).triu(len(prompt.ids) - 8 + 1)
    attention = logits.masked_fill(later, float("-inf")).softmax(-1).mean((0, 1))[:candidates]
    chosen = kept[1, 1, :candidates]
    assert attention[chosen].min() >= attention[~chosen].max()
