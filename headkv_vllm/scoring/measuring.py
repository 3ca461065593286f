# SPDX-License-Identifier: Apache-2.0
"""One sample: the model answers, and every head is scored at every step of the answer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel

from headkv_vllm.errors import ScoringError, UnsupportedError
from headkv_vllm.scoring.methods import METHODS, Method
from headkv_vllm.scoring.prompts import PromptTokens

PREFILL_CHUNK = 2048
"""Prompt tokens per forward pass: bounds the activations, whatever the prompt's length."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one sample gave.

    generated: the answer's token ids, without the token that ends it.
    scores: [num_layers, num_heads], the sum of the method's score over the answer's steps.
    """

    generated: tuple[int, ...]
    scores: npt.NDArray[np.float64]


@dataclass
class _Rows:
    """The rows of one step, by layer: `[num_heads, num_tokens]` each, on their layer's device."""

    num_tokens: int
    by_layer: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, rows: torch.Tensor) -> None:
        if rows.shape[1] != self.num_tokens:
            raise UnsupportedError(
                f"layer {layer} attends {rows.shape[1]} of {self.num_tokens} tokens, so its heads "
                "cannot be scored: only full attention can"
            )
        self.by_layer[layer] = rows


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    prompt: PromptTokens,
    method: Method,
    stop_ids: frozenset[int],
    prefill_chunk: int = PREFILL_CHUNK,
) -> Measurement:
    """Let `model` answer `prompt` greedily, and sum `method` over the steps of the answer.

    The answer ends before a token of `stop_ids`, and after as many tokens as the expected one has.
    The first step is that of the prompt's last token, which generates the answer's first.

    `model` is loaded with `attn_implementation=attention_rows.ATTENTION`. Beyond its weights it
    takes memory for the KV cache, the activations of one chunk, and one step's rows: num_layers *
    num_heads * num_tokens * 4 bytes. There is no `T x T` matrix.

    Raises UnsupportedError when a layer hands over no row or does not attend all tokens, and
    ScoringError when the model yields no numbers.
    """
    cache = DynamicCache(config=model.config)
    ids = torch.tensor(prompt.ids, device=model.device)
    for chunk in ids[:-1].split(prefill_chunk):
        model(chunk[None], past_key_values=cache, logits_to_keep=1)
    sizes = model.config.get_text_config()
    total = np.zeros((sizes.num_hidden_layers, sizes.num_attention_heads))
    generated: list[int] = []
    last = ids[-1:]
    while len(generated) < len(prompt.answer_ids):
        rows = _Rows(len(prompt.ids) + len(generated))
        token = _next_token(model, last, cache, rows)
        if token in stop_ids:
            break
        total += _score_step(rows, prompt, token, method, total.shape[0])
        generated.append(token)
        last = torch.tensor([token], device=model.device)
    return Measurement(tuple(generated), total)


def _next_token(model: PreTrainedModel, last: torch.Tensor, cache: Any, rows: _Rows) -> int:
    output = model(last[None], past_key_values=cache, logits_to_keep=1, read_rows=rows)
    logits = output.logits[0, -1]
    if not torch.isfinite(logits).all():
        raise ScoringError(
            f"the model computes no finite numbers in {str(model.dtype).removeprefix('torch.')}: "
            "try another --dtype"
        )
    return int(logits.argmax())


def _score_step(
    rows: _Rows, prompt: PromptTokens, token: int, method: Method, num_layers: int
) -> npt.NDArray[np.float64]:
    """[num_layers, num_heads]: the scores of the step that generates `token`."""
    missing = sorted(set(range(num_layers)) - rows.by_layer.keys())
    if missing:
        raise UnsupportedError(
            f"layers {missing} have no attention weights, so their heads cannot be scored"
        )
    evidence = torch.zeros(rows.num_tokens, dtype=torch.bool)
    evidence[list(prompt.evidence)] = True
    holds_token = torch.zeros(rows.num_tokens, dtype=torch.bool)
    holds_token[: len(prompt.ids)] = torch.tensor(prompt.ids) == token
    per_layer = []
    for layer in range(num_layers):
        row = rows.by_layer[layer]
        masks = evidence.to(row.device), holds_token.to(row.device)
        per_layer.append(METHODS[method](row, *masks).double().cpu())
    return torch.stack(per_layer).numpy()
