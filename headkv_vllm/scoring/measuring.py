# SPDX-License-Identifier: Apache-2.0
"""Measures one sample: scores every head on the expected answer or on a generated one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from headkv_vllm.arrays import FloatArray
from headkv_vllm.head_scores.layer_types import full_attention_layers
from headkv_vllm.scoring.answer_pass import PREFILL_CHUNK, ReadPrompt
from headkv_vllm.scoring.attention_scores import (
    STEP_SCORES,
    FullAttention,
    Method,
    attention_scores,
)
from headkv_vllm.scoring.prompts import PromptTokens
from headkv_vllm.scoring.sensitivity import sensitivity

Answers = Literal["forced", "generated"]
"""The answers that heads are scored on: those of the samples, or those that the model generates."""
ANSWERS: Final[tuple[Answers, ...]] = get_args(Answers)
MAX_EXTRA_TOKENS: Final = 32
"""A generated answer may have this many tokens more than the expected one."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of one sample.

    answer: the scored tokens, without the token that ends the answer.
    choices: the model's most likely token in place of each token of `answer`.
    scores: [num_layers, num_heads], the method's score of this answer, of the layers with full
        attention.
    """

    answer: tuple[int, ...]
    choices: tuple[int, ...]
    scores: FloatArray

    @property
    def agreement(self) -> float:
        """The share of the answer's tokens that are the model's own choice; 0 without tokens."""
        equal = sum(a == b for a, b in zip(self.answer, self.choices, strict=True))
        return equal / max(1, len(self.answer))


def measure(
    model: PreTrainedModel,
    prompt: PromptTokens,
    method: Method,
    answers: Answers,
    stop_ids: frozenset[int],
    prefill_chunk: int = PREFILL_CHUNK,
) -> Measurement:
    """Score the heads of `model` on the expected answer, or on an answer that it generates.

    A generated answer ends before a token of `stop_ids`, or when it has `MAX_EXTRA_TOKENS` tokens
    more than the expected one. One pass over the answer scores it. The token before each token of
    the answer generates it, so the first row is that of the prompt's last token.

    `model` is loaded with `attn_implementation=attention_rows.ATTENTION`. Besides the weights, the
    memory holds the KV cache, the activations of one chunk, and a few copies of one layer's rows of
    num_heads * answer tokens * num_tokens * 4 bytes. There is no `T x T` matrix.

    Raises UnsupportedError when a layer gives no rows, and ScoringError when the model's logits are
    not finite.
    """
    read = ReadPrompt.read(model, prompt.ids, prefill_chunk)
    answer = prompt.answer_ids
    if answers == "generated":
        answer = read.generate(len(answer) + MAX_EXTRA_TOKENS, stop_ids)
    text = model.config.get_text_config()
    full = full_attention_layers(text.to_dict(), text.num_hidden_layers)
    if not answer:
        return Measurement((), (), np.zeros((len(full), text.num_attention_heads)))
    scores, logits = _score(read, prompt, method, answer)
    return Measurement(answer, tuple(logits.argmax(-1).tolist()), scores[full].numpy())


def _score(
    read: ReadPrompt, prompt: PromptTokens, method: Method, answer: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [num_layers, num_heads], and the answer's logits [num_rows, vocab_size]."""
    if method != "grad":
        return attention_scores(read, prompt, answer, STEP_SCORES[method])
    with torch.no_grad():
        logits = read.answer(answer, FullAttention(read))
    return sensitivity(read, answer), logits
