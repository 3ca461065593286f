# SPDX-License-Identifier: Apache-2.0
"""Gradients of gates against a plain reference, which computes prompt and answer as one text."""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from headkv_vllm.scoring import sensitivity as sensitivity_module
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import ATTENTION
from headkv_vllm.scoring.run import share_among_kv_heads
from headkv_vllm.scoring.sensitivity import far_tokens, sensitivity
from tests.scoring.random_models import CONFIGS, full_layers, random_model, random_prompt

PLAIN = "tests_gated_plain"
STD = 0.3
"""Of the weights: the likelihood changes smoothly with the gates."""


@pytest.fixture(autouse=True)
def near_is_short(monkeypatch):
    monkeypatch.setattr(sensitivity_module, "SINK", 2)
    monkeypatch.setattr(sensitivity_module, "RECENT", 3)


def gated_plain(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    gates=None,
    sliding_window=None,
    **kwargs,
):
    """Every head's output at every token; from the answer's first row on behind a gate."""
    sink, recent = sensitivity_module.SINK, sensitivity_module.RECENT
    _, num_heads, num_tokens, head_size = query.shape
    scale = head_size**-0.5 if scaling is None else scaling
    output = torch.zeros(1, num_tokens, num_heads, head_size)
    for head in range(num_heads):
        kv_head = head // (num_heads // key.shape[1])
        gate = gates.values[module.layer_idx, head]
        for row in range(num_tokens):
            seen = range(max(0, row + 1 - (sliding_window or row + 1)), row + 1)
            logits = query[0, head, row] @ key[0, kv_head, seen].T * scale
            far = [position >= sink and position <= row - recent for position in seen]
            full = logits.softmax(0) @ value[0, kv_head, seen]
            near = logits.masked_fill(torch.tensor(far), float("-inf")).softmax(0)
            near = near @ value[0, kv_head, seen]
            is_answer = row >= gates.first_row
            output[0, row, head] = gate * full + (1 - gate) * near if is_answer else full
    return output, None


AttentionInterface.register(PLAIN, gated_plain)
AttentionMaskInterface.register(PLAIN, sdpa_mask)


class Gates:
    """What the reference is called with."""

    def __init__(self, values, first_row):
        self.values, self.first_row = values, first_row


def log_likelihood_plain(model, prompt, gates):
    ids = torch.tensor([[*prompt.ids, *prompt.answer_ids[:-1]]])
    first = len(prompt.ids) - 1
    logits = model(ids, use_cache=False, gates=Gates(gates, first)).logits[0, first:]
    logits = logits.log_softmax(-1)
    return sum(logits[row, token] for row, token in enumerate(prompt.answer_ids))


def gradient_plain(model, prompt, amount):
    gates = torch.ones(model.config.num_hidden_layers, model.config.num_attention_heads)
    gates[full_layers(model.config)] = amount
    gates.requires_grad_()
    log_likelihood_plain(model, prompt, gates).backward()
    return gates.grad


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_plain_reference(name):
    plain, ours = random_model(name, PLAIN, std=STD), random_model(name, ATTENTION, std=STD)
    prompt = random_prompt(0, num_tokens=18, num_answer_tokens=4)
    amounts = (0.2, 0.9)
    expected = sum(gradient_plain(plain, prompt, amount) for amount in amounts) / len(amounts)
    read = ReadPrompt.read(ours, prompt.ids, prefill_chunk=5)
    found = sensitivity(read, prompt.answer_ids, amounts)
    assert expected.abs().max() > 0.01
    layers = full_layers(ours.config)
    torch.testing.assert_close(found[layers].float(), expected[layers], rtol=1e-3, atol=1e-5)


def test_the_heads_share_what_the_answer_loses_when_none_looks_far():
    """Integrated gradients: over all amounts from 0 to 1 they sum up to the difference."""
    model = random_model("llama", ATTENTION, std=STD)
    plain = random_model("llama", PLAIN, std=STD)
    prompt = random_prompt(1, num_tokens=20, num_answer_tokens=4)
    amounts = (np.arange(20) + 0.5) / 20
    shared = sensitivity(ReadPrompt.read(model, prompt.ids), prompt.answer_ids, amounts)
    ends = [
        log_likelihood_plain(plain, prompt, torch.full(shared.shape, amount))
        for amount in (0.0, 1.0)
    ]
    assert abs(ends[1] - ends[0]) > 0.1
    assert float(shared.sum()) == pytest.approx(float(ends[1] - ends[0]), rel=0.02)


def test_bfloat16_is_near():
    prompt = random_prompt(2, num_tokens=60)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model("qwen3", ATTENTION, std=STD).to(dtype)
        found.append(sensitivity(ReadPrompt.read(model, prompt.ids), prompt.answer_ids).flatten())
    assert np.corrcoef(*found)[0, 1] > 0.98


def test_the_graph_holds_no_layers_rows_of_attention():
    """What grows with the prompt is computed again, layer by layer."""
    num_tokens = 300
    prompt = random_prompt(3, num_tokens=num_tokens)
    read = ReadPrompt.read(random_model("llama", ATTENTION, std=STD), prompt.ids)
    held = []

    def note(tensor):
        held.append(max(tensor.shape, default=0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        sensitivity(read, prompt.answer_ids)
    assert held and max(held) < num_tokens


def test_what_is_far():
    far = far_tokens(num_rows=2, num_tokens=8, device=torch.device("cpu"))
    assert far.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [1, 4]]


def test_a_kv_heads_gate_is_that_of_its_query_heads():
    gradients = np.array([[1.0, 3.0, -5.0, 2.0], [0.0, 0.0, 4.0, -1.0]])
    np.testing.assert_array_equal(
        share_among_kv_heads(gradients, 2), [[2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.5, 1.5]]
    )
