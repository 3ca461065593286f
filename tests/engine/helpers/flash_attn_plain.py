# SPDX-License-Identifier: Apache-2.0
"""What FlashAttention computes, in plain torch, for as much of its signature as we use."""

from typing import Any

import torch


def flash_attn_varlen_func_plain(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    softcap: float,
    block_table: torch.Tensor,
    fa_version: Any,
) -> torch.Tensor:
    """Paged: k and v are [num_blocks, block_size, num_kv_heads, head_size].

    The last of a sequence's queries stands beside the last of its keys; queries before all of them
    get no numbers.
    """
    assert causal and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    starts, lengths = cu_seqlens_q.tolist(), seqused_k.tolist()
    assert len(starts) == len(lengths) + 1 == len(block_table) + 1 and starts[-1] == len(q)
    assert max(lengths) <= max_seqlen_k <= block_table.shape[1] * k.shape[1]
    group_size = q.shape[1] // k.shape[2]
    for start, end, length, blocks in zip(starts, starts[1:], lengths, block_table, strict=False):
        assert end - start <= max_seqlen_q and length >= 1
        entries = [
            pool[blocks.long()].flatten(0, 1)[:length].repeat_interleave(group_size, 1).float()
            for pool in (k, v)
        ]
        logits = torch.einsum("qhd,khd->hqk", q[start:end].float(), entries[0]) * softmax_scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        is_later = torch.ones(logits.shape[1:]).triu(length - (end - start) + 1).bool()
        weights = logits.masked_fill(is_later, float("-inf")).softmax(-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, entries[1]).to(out.dtype)
    return out
