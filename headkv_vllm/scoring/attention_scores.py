# SPDX-License-Identifier: Apache-2.0
"""Scores of heads by what they attend during an answer: the retrieval score r, HeadKV's r2.

The score of a sample is the sum over the steps of its answer. The score of a model is the mean over
its samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import AnswerRows, row_logits, weighted_values
from headkv_vllm.scoring.prompts import PromptTokens

Method = Literal["grad", "r2", "r"]
"""How heads are scored: by `sensitivity`, or by one of `STEP_SCORES`."""
METHODS: Final[tuple[Method, ...]] = get_args(Method)


class StepScore(Protocol):
    """One layer's attention at one answer step, as one number per head."""

    def __call__(self, attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
        """`[num_heads]` float32, from 0 to 1.

        attention: `[num_heads, num_tokens]` float32, each head's softmax row for the last token.
        evidence: `[num_tokens]` bool, True for the tokens of the evidence; at least one is True.
        holds_token: `[num_tokens]` bool, True where the prompt has the token that this step
            generates.
        """


def retrieval_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    """The retrieval score r of arXiv 2404.15574, see `StepScore`.

    A head scores 1 / (number of evidence tokens) when the position that it attends most is
    evidence and holds the token that is generated. Of equal weights the earliest counts. The paper
    counts a token of the evidence once, even if it is copied again. Its code counts every step,
    and so does this function.
    """
    best = attention.argmax(dim=1)
    copied = evidence & holds_token
    return copied[best].float() / evidence.sum()


def evidence_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    """The retrieval-reasoning score r2 of HeadKV (arXiv 2410.19258), see `StepScore`.

    k is the number of evidence tokens. Of the k positions that a head attends most, those that are
    evidence add their weight / k. Of equal weights the earlier count. `holds_token` is not used.
    This is the sum in the paper. The paper's code also multiplies by ten and divides by the number
    of answer tokens. That scales all heads of a sample alike.
    """
    num_evidence = int(evidence.sum())
    # topk does not define which of several equal values it takes, so only its last value is used.
    lowest = attention.topk(num_evidence, dim=1).values[:, -1:]
    above, equal = attention > lowest, attention == lowest
    num_equal = num_evidence - above.sum(dim=1, keepdim=True)
    top = above | (equal & (equal.cumsum(dim=1) <= num_equal))
    return attention.masked_fill(~(top & evidence), 0.0).sum(dim=1) / num_evidence


STEP_SCORES: Final[dict[Method, StepScore]] = {"r2": evidence_score, "r": retrieval_score}


ReadRows = Callable[[int, torch.Tensor], None]
"""Takes a layer's index and its weights, [num_heads, num_rows, num_prompt_tokens + num_rows]."""


@dataclass(frozen=True, eq=False)
class FullAttention:
    """The model's own attention for an answer's tokens. It holds one layer's weights at a time."""

    prompt: ReadPrompt
    read_rows: ReadRows = lambda layer, weights: None

    def __call__(self, layer: int, rows: AnswerRows) -> torch.Tensor:
        """See `Attend`."""
        prompt_key, prompt_value = self.prompt.layer(layer)
        weights = row_logits(rows, prompt_key).softmax(-1)
        self.read_rows(layer, weights)
        return weighted_values(weights, prompt_value, rows.value)


@torch.no_grad()
def attention_scores(
    prompt: ReadPrompt, sample: PromptTokens, answer: Sequence[int], step_score: StepScore
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of `step_score` over the tokens of `answer`, and the logits of these tokens.

    The step of the token before generates a token. Returns [num_layers, num_heads] float64 and
    [num_rows, vocab_size] float32.
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
    """`mask`, continued with False for the tokens after the prompt."""
    return torch.cat([mask, mask.new_zeros(length - len(mask))])
