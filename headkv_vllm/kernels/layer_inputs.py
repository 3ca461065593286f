# SPDX-License-Identifier: Apache-2.0
"""What the kernels of one layer read and write, and what the layer does to logits."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's kernels need besides rows.

    head_blocks: [num_head_blocks, block_size, 2 * head_size], of all layers, keys before values.
    key_scale, value_scale: [1] float32, what stored keys and values are multiples of.
    logits_soft_cap: 0 for none.
    """

    layer: int
    head_blocks: torch.Tensor
    scale: float
    logits_soft_cap: float
    key_scale: torch.Tensor
    value_scale: torch.Tensor
