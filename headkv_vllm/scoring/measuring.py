# SPDX-License-Identifier: Apache-2.0
"""One sample: the model answers, or is told the answer, and every head is scored while it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from headkv_vllm.scoring.answer_pass import PREFILL_CHUNK, ReadPrompt
from headkv_vllm.scoring.attention_scores import FullAttention, attention_scores
from headkv_vllm.scoring.methods import STEP_SCORES, Method
from headkv_vllm.scoring.prompts import PromptTokens
from headkv_vllm.scoring.sensitivity import sensitivity

Answers = Literal["forced", "generated"]
"""Whose answers heads are scored on: the samples', or those that the model gives."""
ANSWERS: Final[tuple[Answers, ...]] = get_args(Answers)
ROOM_TO_TALK: Final = 32
"""Tokens that a generated answer may have more than the expected one."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one sample gave.

    answer: the tokens that were scored, without the one that ends the answer.
    choices: the model's own choice in place of each of them, which a generated answer consists of.
    scores: [num_layers, num_heads], the method's score of this answer.
    """

    answer: tuple[int, ...]
    choices: tuple[int, ...]
    scores: npt.NDArray[np.float64]

    @property
    def agreement(self) -> float:
        """The share of the answer's tokens that the model would choose itself; 0 for none."""
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
    """Score the heads of `model` on the expected answer, or on the one that it generates.

    A generated answer ends before a token of `stop_ids`, or when it has `ROOM_TO_TALK` tokens more
    than the expected one. Either answer is scored in one pass over its rows: each token's is that
    of the token before it, which gives it; the first one's is that of the prompt's last token.

    `model` is loaded with `attn_implementation=attention_rows.ATTENTION`. Beyond its weights it
    takes memory for the KV cache, the activations of one chunk, and one layer's rows: num_heads *
    answer tokens * num_tokens * 4 bytes, some times over. There is no `T x T` matrix.

    Raises UnsupportedError when a layer hands over no row or does not attend all tokens, and
    ScoringError when the model yields no numbers.
    """
    read = ReadPrompt.read(model, prompt.ids, prefill_chunk)
    answer = prompt.answer_ids
    if answers == "generated":
        answer = read.generate(len(answer) + ROOM_TO_TALK, stop_ids)
    sizes = model.config.get_text_config()
    if not answer:
        return Measurement((), (), np.zeros((sizes.num_hidden_layers, sizes.num_attention_heads)))
    scores, logits = _score(read, prompt, method, answer)
    return Measurement(answer, tuple(logits.argmax(-1).tolist()), scores.numpy())


def _score(
    read: ReadPrompt, prompt: PromptTokens, method: Method, answer: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [num_layers, num_heads], and the answer's logits [num_rows, vocab_size]."""
    if method != "grad":
        return attention_scores(read, prompt, answer, STEP_SCORES[method])
    with torch.no_grad():
        logits = read.answer(answer, FullAttention(read))
    return sensitivity(read, answer), logits
