# SPDX-License-Identifier: Apache-2.0
"""Scores of heads by how much an answer's likelihood depends on their attention to far tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.utils.checkpoint import checkpoint

from headkv_vllm.head_scores.layer_types import full_attention_layers
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import AnswerRows, row_logits, weighted_values

SINK: Final = 4
RECENT: Final = 32
"""Tokens that are near: the first ones of the prompt, and the latest ones, the token itself
included."""
AMOUNTS: Final = (0.3, 0.5, 0.7)
"""The values of the gates at which gradients are taken."""


def sensitivity(
    prompt: ReadPrompt, answer: Sequence[int], amounts: Sequence[float] = AMOUNTS
) -> torch.Tensor:
    """The gradient of the answer's log-likelihood with respect to a gate for each query head.

    While the answer is computed, the output of a head is `gate * full + (1 - gate) * near`. `full`
    is its attention of all tokens; `near` is its attention of the first `SINK` and the last
    `RECENT` tokens only. All gates have one value. The result is the mean of the gradients at
    `amounts`, which are values from 0 to 1.

    Returns [num_layers, num_heads] float64, of either sign. Layers with a sliding window have no
    gates, and their values mean nothing.

    The weights of the model have no gradients (`requires_grad_(False)`), so the graph contains the
    answer's rows only. It holds the attention of one layer at a time.
    """
    text = prompt.model.config.get_text_config()
    full = full_attention_layers(text.to_dict(), prompt.num_layers)
    total = torch.zeros(prompt.num_layers, text.num_attention_heads, dtype=torch.float64)
    targets = torch.tensor(answer, device=prompt.last.device)[:, None]
    for amount in amounts:
        gates = torch.ones(total.shape)
        gates[full] = amount
        gates.requires_grad_()
        with torch.enable_grad():
            logits = prompt.answer(answer, _Gated(prompt, gates))
            log_likelihood = logits.log_softmax(-1).gather(1, targets.to(logits.device)).sum()
            (gradient,) = torch.autograd.grad(log_likelihood, gates)
        total += gradient.double() / len(amounts)
    return total


@dataclass(frozen=True, eq=False)
class _Gated:
    """Attention with gates [num_layers, num_heads]; see `sensitivity`."""

    prompt: ReadPrompt
    gates: torch.Tensor

    def __call__(self, layer: int, rows: AnswerRows) -> torch.Tensor:
        gates = self.gates[layer].to(rows.query.device)
        # The backward pass computes this again, so that the rows of one layer at a time are held.
        output: torch.Tensor = checkpoint(self._attend, layer, rows, gates, use_reentrant=False)
        return output

    def _attend(self, layer: int, rows: AnswerRows, gates: torch.Tensor) -> torch.Tensor:
        prompt_key, prompt_value = self.prompt.layer(layer)
        logits = row_logits(rows, prompt_key)
        far = far_tokens(logits.shape[1], logits.shape[2], logits.device)
        near = logits.masked_fill(far, float("-inf")).softmax(-1)
        weights = near + gates[:, None, None] * (logits.softmax(-1) - near)
        return weighted_values(weights, prompt_value, rows.value)


def far_tokens(num_rows: int, num_tokens: int, device: torch.device) -> torch.Tensor:
    """Bool [num_rows, num_tokens]: True where a token is far from a row's token.

    The rows are the last `num_rows` of the tokens.
    """
    rows = torch.arange(num_tokens - num_rows, num_tokens, device=device)[:, None]
    tokens = torch.arange(num_tokens, device=device)
    return (tokens >= SINK) & (tokens <= rows - RECENT)
