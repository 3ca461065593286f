# SPDX-License-Identifier: Apache-2.0
"""Writes the keys and values of a step's tokens into their head blocks."""

import torch
import triton
import triton.language as tl

from headkv_vllm.kernels.inputs import DeviceRows, LayerInputs


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    slot_mapping: torch.Tensor,
    rows: DeviceRows,
    inputs: LayerInputs,
) -> None:
    """key, value: [num_tokens, H, head_size]. slot_mapping: [num_tokens] int64, -1 for none.

    Changes `inputs.head_blocks`, where entries are stored divided by the scales.
    """
    num_tokens, num_kv_heads, head_size = key.shape
    _reshape_and_cache[(num_tokens, num_kv_heads)](
        key,
        value,
        key.stride(0),
        value.stride(0),
        slot_mapping,
        inputs.head_blocks,
        inputs.layer,
        inputs.key_scale,
        inputs.value_scale,
        NUM_HEADS=rows.heads_per_block,
        HEAD_SIZE=head_size,
        BLOCK_D=triton.next_power_of_2(head_size),
        BLOCK_SIZE=rows.block_size,
    )


@triton.jit(do_not_specialize=["layer"])
def _reshape_and_cache(
    key,
    value,
    key_stride,
    value_stride,
    slot_mapping,
    head_blocks,
    layer,
    key_scale,
    value_scale,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One program for each token and KV head."""
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_SIZE
    head_block = slot // BLOCK_SIZE * NUM_HEADS + layer * tl.num_programs(1) + kv_head
    entry = head_blocks + (head_block * BLOCK_SIZE + slot % BLOCK_SIZE) * (2 * HEAD_SIZE) + channel
    own = kv_head * HEAD_SIZE + channel
    k = tl.load(key + token * key_stride + own, mask=is_channel).to(tl.float32)
    v = tl.load(value + token * value_stride + own, mask=is_channel).to(tl.float32)
    stored_type = head_blocks.dtype.element_ty
    tl.store(entry, (k / tl.load(key_scale)).to(stored_type), mask=is_channel)
    tl.store(entry + HEAD_SIZE, (v / tl.load(value_scale)).to(stored_type), mask=is_channel)
