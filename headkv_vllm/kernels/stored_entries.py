# SPDX-License-Identifier: Apache-2.0
"""Writes the keys and values of a step's tokens into their head blocks."""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.rows import DeviceRows


def store_entries(
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    rows: DeviceRows,
    inputs: LayerInputs,
) -> None:
    """key, value: [num_tokens, H, head_size]. slots: [num_tokens] int64; below 0 for none.

    Changes `inputs.head_blocks`, where entries are stored as multiples of the scales.
    """
    num_tokens, num_kv_heads, head_size = key.shape
    _store[(num_tokens, num_kv_heads)](
        key,
        value,
        key.stride(0),
        value.stride(0),
        slots,
        inputs.head_blocks,
        inputs.layer,
        inputs.key_scale,
        inputs.value_scale,
        NUM_HEADS=rows.num_heads_of_all_layers,
        HEAD_SIZE=head_size,
        HEAD_LANES=triton.next_power_of_2(head_size),
        BLOCK_SIZE=rows.block_size,
    )


def store_entries_plain(
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    rows: DeviceRows,
    inputs: LayerInputs,
) -> None:
    """Plain twin of `store_entries`."""
    cache = inputs.head_blocks
    for token, slot in enumerate(slots.tolist()):
        for head in range(rows.num_kv_heads if slot >= 0 else 0):
            block, offset = divmod(slot, rows.block_size)
            own = inputs.layer * rows.num_kv_heads + head
            scaled = (
                key[token, head].float() / inputs.key_scale,
                value[token, head].float() / inputs.value_scale,
            )
            entry = cache[block * rows.num_heads_of_all_layers + own, offset]
            # Numbers that are too large become the largest there is, as in GPUs' conversions.
            limits = torch.finfo(cache.dtype)
            entry.copy_(torch.cat(scaled).clamp(limits.min, limits.max).to(cache.dtype))


@triton.jit(do_not_specialize=["layer"])
def _store(
    key,
    value,
    key_stride,
    value_stride,
    slots,
    head_blocks,
    layer,
    key_scale,
    value_scale,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One program for each token and KV head."""
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    channel = tl.arange(0, HEAD_LANES)
    is_channel = channel < HEAD_SIZE
    head_block = slot // BLOCK_SIZE * NUM_HEADS + layer * tl.num_programs(1) + kv_head
    entry = head_blocks + (head_block * BLOCK_SIZE + slot % BLOCK_SIZE) * (2 * HEAD_SIZE) + channel
    own = kv_head * HEAD_SIZE + channel
    k = tl.load(key + token * key_stride + own, mask=is_channel).to(tl.float32)
    v = tl.load(value + token * value_stride + own, mask=is_channel).to(tl.float32)
    stored_type = head_blocks.dtype.element_ty
    tl.store(entry, (k / tl.load(key_scale)).to(stored_type), mask=is_channel)
    tl.store(entry + HEAD_SIZE, (v / tl.load(value_scale)).to(stored_type), mask=is_channel)
