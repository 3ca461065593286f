# SPDX-License-Identifier: Apache-2.0
"""Attention with a mask of its own per layer and head, for transformers models.

Used where heads must not see everything: in the early stages of training, and to judge which heads
the answers depend on. Without masks it is plain causal attention that leaves `position_ids` alone
(transformers' own masks take a jump in them for the start of another sequence).
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION: Final = "needle_head_masks"
"""Name to load a model with: `from_pretrained(folder, attn_implementation=ATTENTION)`."""


def head_mask_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layer_masks: Sequence[torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention; `layer_masks[layer]` says what each head sees instead, when given.

    Args:
        query: `[batch, num_heads, num_tokens, head_size]`; key and value have num_kv_heads.
        layer_masks: one bool tensor per layer, `[batch or 1, num_heads, num_tokens, num_tokens]`,
            True where a token is seen. The model passes it on: `model(ids, layer_masks=...)`.
    Returns:
        `[batch, num_tokens, num_heads, head_size]` and no attention weights.
    """
    group = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    mask = None if layer_masks is None else layer_masks[cast(int, module.layer_idx)]
    output = scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scaling
    )
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, head_mask_attention)


def reduced_masks(
    full_heads: torch.Tensor, group: int, num_tokens: int, window: int, prompt_length: int | None
) -> list[torch.Tensor]:
    """Masks under which only some KV heads see everything, the others BOS and a window.

    Args:
        full_heads: bool `[num_layers, num_kv_heads]`.
        group: query heads per KV head.
        num_tokens: length of the sequences.
        window: tokens that the reduced heads see besides BOS.
        prompt_length: None gives every token a window that ends with itself. Otherwise the prompt
            sees everything in all heads, and the tokens after it see the prompt's last `window`
            tokens and each other, as if the prompt's cache were reduced once it is complete.
    Returns:
        One bool mask `[1, num_heads, num_tokens, num_tokens]` per layer.
    """
    row, column = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)[None, :]
    causal = column <= row
    if prompt_length is None:
        seen = (column > row - window) | (column == 0)
    else:
        seen = (column >= prompt_length - window) | (column == 0) | (row < prompt_length)
    masks = torch.where(full_heads[:, :, None, None], causal, causal & seen)
    return list(masks.repeat_interleave(group, dim=1).unsqueeze(1))
