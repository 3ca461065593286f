# SPDX-License-Identifier: Apache-2.0
"""Attention for transformers models that also hands over what the last token attends.

A model computes its output by PyTorch's fused attention, which never forms a `T x T` matrix. For a
single query the row of weights is cheap, and is all that scoring needs.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from headkv_vllm.errors import UnsupportedError

ATTENTION: Final = "headkv_attention_rows"
"""Name to load a model with: `from_pretrained(folder, attn_implementation=ATTENTION)`."""

RowReader = Callable[[int, torch.Tensor], None]
"""Takes a layer's index and its rows, `[num_heads, num_tokens]` float32."""

CHANGES_WEIGHTS: Final = {
    "softcap": "an attention soft cap",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
}
"""Arguments by which a model says that its weights are not a plain softmax."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    read_rows: RowReader | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' fused attention; `read_rows` is called with the last token's weights.

    query: `[1, num_heads, num_queries, head_size]`; key and value with num_kv_heads and
    num_tokens. read_rows: what the model was called with, `model(ids, read_rows=...)`.
    Returns `[1, num_queries, num_heads, head_size]` and, like all fused attention, no weights.
    Raises UnsupportedError when the weights are not the softmax of scaled products.
    """
    _check_plain(module, kwargs)
    if read_rows is not None:
        read_rows(cast(int, module.layer_idx), last_rows(query, key, scaling))
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output, None


def _check_plain(module: torch.nn.Module, arguments: dict[str, Any]) -> None:
    found = [name for key, name in CHANGES_WEIGHTS.items() if arguments.get(key) is not None]
    if not getattr(module, "is_causal", True):
        found.append("attention that is not causal")
    if found:
        raise UnsupportedError(
            f"the heads of {type(module).__name__} cannot be scored: it has {found[0]}"
        )


def last_rows(query: torch.Tensor, key: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """What the last query of each head attends: `[num_heads, num_tokens]` float32, rows sum to 1.

    query: `[1, num_heads, num_queries, head_size]`. key: `[1, num_kv_heads, num_tokens,
    head_size]`, none of it after the last query. Query heads share KV heads in order.
    """
    num_heads, head_size = query.shape[1], query.shape[3]
    num_kv_heads = key.shape[1]
    grouped = query[0, :, -1].float().view(num_kv_heads, num_heads // num_kv_heads, head_size)
    logits = grouped @ key[0].float().transpose(1, 2)
    scale = head_size**-0.5 if scaling is None else scaling
    return logits.mul_(scale).softmax(-1).flatten(0, 1)


def last_rows_plain(query: torch.Tensor, key: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Plain twin of `last_rows`."""
    num_heads, head_size = query.shape[1], query.shape[3]
    scale = head_size**-0.5 if scaling is None else scaling
    rows = []
    for head in range(num_heads):
        kv_head = head // (num_heads // key.shape[1])
        products = [float(query[0, head, -1].double() @ k.double()) for k in key[0, kv_head]]
        rows.append(torch.softmax(torch.tensor(products, dtype=torch.float64) * scale, 0))
    return torch.stack(rows).float()


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
