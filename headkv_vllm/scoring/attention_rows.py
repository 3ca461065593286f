# SPDX-License-Identifier: Apache-2.0
"""Attention for transformers models that gives access to the weights of an answer's tokens.

A model computes its prompt by PyTorch's fused attention, which never forms a `T x T` matrix.
Scoring needs the weights of the answer's tokens only. They are few, so their rows are cheap.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from headkv_vllm.errors import UnsupportedError

ATTENTION: Final = "headkv_attention_rows"
"""The name for loading a model: `from_pretrained(folder, attn_implementation=ATTENTION)`."""

CHANGES_WEIGHTS: Final = {
    "softcap": "an attention soft cap",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
}
"""Arguments that a model passes when its attention weights are not a plain softmax."""


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """The answer's own tokens in one layer.

    query: [num_heads, num_rows, head_size]. key, value: [num_kv_heads, num_rows, head_size].
    scale: of the logits. sliding_window: how many tokens a token attends, itself included; None
        for all.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    sliding_window: int | None = None


class Attend(Protocol):
    """Replaces one layer's attention for the tokens of an answer."""

    def __call__(self, layer: int, rows: AnswerRows) -> torch.Tensor:
        """Returns [num_heads, num_rows, head_size] float32."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' fused attention, or `attend` where the caller of the model gives one.

    query: [1, num_heads, num_queries, head_size]. key, value: [1, num_kv_heads, num_tokens,
    head_size]. Returns [1, num_queries, num_heads, head_size] and, as fused attention does, None
    for the weights.

    Raises UnsupportedError when the weights are not the softmax of scaled products.
    """
    _check_plain(module, kwargs)
    if attend is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    rows = AnswerRows(query[0], key[0], value[0], scale, kwargs.get("sliding_window"))
    attended = attend(cast(int, module.layer_idx), rows)
    return attended.transpose(0, 1)[None].to(query.dtype), None


def _check_plain(module: torch.nn.Module, arguments: dict[str, Any]) -> None:
    found = [name for key, name in CHANGES_WEIGHTS.items() if arguments.get(key) is not None]
    if not getattr(module, "is_causal", True):
        found.append("attention that is not causal")
    if found:
        raise UnsupportedError(
            f"the heads of {type(module).__name__} cannot be scored: it has {found[0]}"
        )


def row_logits(rows: AnswerRows, prompt_key: torch.Tensor) -> torch.Tensor:
    """The attention logits of an answer's tokens, before the softmax.

    prompt_key: [num_kv_heads, num_prompt_tokens, head_size].
    Returns [num_heads, num_rows, num_prompt_tokens + num_rows] float32, -inf for tokens that are
    not attended. Consecutive query heads share a KV head.
    """
    num_heads, num_rows, _ = rows.query.shape
    grouped = rows.query.float().unflatten(0, (len(rows.key), -1)).flatten(1, 2) * rows.scale
    logits = torch.cat(
        [grouped @ keys.float().transpose(1, 2) for keys in (prompt_key, rows.key)], dim=-1
    )
    everything = torch.ones(num_rows, logits.shape[-1], dtype=torch.bool, device=logits.device)
    hidden = everything.triu(prompt_key.shape[1] + 1)
    if rows.sliding_window is not None:
        hidden |= everything.tril(prompt_key.shape[1] - rows.sliding_window)
    return logits.view(num_heads, num_rows, -1).masked_fill(hidden, float("-inf"))


def weighted_values(
    weights: torch.Tensor, prompt_value: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of the values of all tokens: [num_heads, num_rows, head_size] float32.

    weights: [num_heads, num_rows, num_prompt_tokens + num_rows] float32.
    prompt_value: [num_kv_heads, num_prompt_tokens, head_size]; value: see `AnswerRows`.
    """
    num_heads, num_rows, _ = weights.shape
    grouped = weights.reshape(len(value), -1, weights.shape[2])
    for_prompt, for_answer = grouped.split([prompt_value.shape[1], num_rows], dim=-1)
    output: torch.Tensor = for_prompt @ prompt_value.float() + for_answer @ value.float()
    return output.view(num_heads, num_rows, -1)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
