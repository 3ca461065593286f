# SPDX-License-Identifier: Apache-2.0
"""From one score per query head to one per KV head: a KV head is kept or dropped as a whole."""

from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Fold = Literal["mean", "max", "sum"]


def fold_query_heads(scores: FloatArray, num_kv_heads: int, how: Fold) -> FloatArray:
    """Scores [num_layers, num_heads] of query heads, folded to [num_layers, num_kv_heads].

    Query heads i*G .. (i+1)*G - 1 share KV head i, with G = num_heads // num_kv_heads
    (grouped-query attention, arXiv 2305.13245).
    """
    num_layers, num_heads = scores.shape
    groups = scores.reshape(num_layers, num_kv_heads, num_heads // num_kv_heads)
    folded: dict[Fold, FloatArray] = {
        "mean": groups.mean(axis=2),
        "max": groups.max(axis=2),
        "sum": groups.sum(axis=2),
    }
    return folded[how]
