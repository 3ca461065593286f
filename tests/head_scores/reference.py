# SPDX-License-Identifier: Apache-2.0
"""Plain reference of `headkv_vllm.head_scores`: one head at a time."""

import numpy as np

from headkv_vllm.arrays import FloatArray
from headkv_vllm.head_scores.scores import Fold


def fold_query_heads(scores: FloatArray, num_kv_heads: int, how: Fold) -> FloatArray:
    """What `fold_query_heads` computes, one KV head at a time."""
    num_layers, num_heads = scores.shape
    size = num_heads // num_kv_heads
    folded = np.zeros((num_layers, num_kv_heads))
    for layer in range(num_layers):
        for kv_head in range(num_kv_heads):
            group = [float(scores[layer, kv_head * size + i]) for i in range(size)]
            folds = {"mean": sum(group) / size, "max": max(group), "sum": sum(group)}
            folded[layer, kv_head] = folds[how]
    return folded
