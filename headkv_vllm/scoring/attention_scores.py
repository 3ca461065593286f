# SPDX-License-Identifier: Apache-2.0
"""Scores of heads by what they attend while an answer is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import row_logits, weighted_values
from headkv_vllm.scoring.methods import StepScore
from headkv_vllm.scoring.prompts import PromptTokens

ReadRows = Callable[[int, torch.Tensor], None]
"""Takes a layer's index and its weights, [num_heads, num_rows, num_prompt_tokens + num_rows]."""


@dataclass(frozen=True, eq=False)
class FullAttention:
    """The model's own attention of an answer's tokens. One layer's weights are held at a time."""

    prompt: ReadPrompt
    read_rows: ReadRows = lambda layer, weights: None

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `Attend`."""
        prompt_key, prompt_value = self.prompt.layer(layer)
        weights = row_logits(query, prompt_key, key, scale).softmax(-1)
        self.read_rows(layer, weights)
        return weighted_values(weights, prompt_value, value)


@torch.no_grad()
def attention_scores(
    prompt: ReadPrompt, sample: PromptTokens, answer: Sequence[int], step_score: StepScore
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of `step_score` over the tokens of `answer`, and their logits.

    The step that gives a token is that of the token before it. Returns [num_layers, num_heads]
    float64 and [num_rows, vocab_size] float32.
    """
    evidence = torch.zeros(len(sample.ids), dtype=torch.bool)
    evidence[list(sample.evidence)] = True
    ids = torch.tensor(sample.ids)
    by_layer: dict[int, torch.Tensor] = {}

    def read_rows(layer: int, weights: torch.Tensor) -> None:
        scores = torch.zeros(len(weights), dtype=torch.float64)
        for row, token in enumerate(answer):
            num_tokens = len(ids) + row
            masks = (_padded(mask, num_tokens) for mask in (evidence, ids == token))
            on_device = (mask.to(weights.device) for mask in masks)
            scores += step_score(weights[:, row, :num_tokens], *on_device).double().cpu()
        by_layer[layer] = scores

    logits = prompt.answer(answer, FullAttention(prompt, read_rows))
    return torch.stack([by_layer[layer] for layer in range(prompt.num_layers)]), logits


def _padded(mask: torch.Tensor, length: int) -> torch.Tensor:
    """`mask`, with False for what comes after the prompt."""
    return torch.cat([mask, mask.new_zeros(length - len(mask))])
