# SPDX-License-Identifier: Apache-2.0
"""What an importer reads out of a file."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headkv_vllm.scores.identity import ModelIdentity
from headkv_vllm.scores.importers.source import Source

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Imported:
    """Checked scores [num_layers, num_heads], the file that they are from, its samples if known.

    scores: one per query head, finite, not negative, at least one above zero.
    Raises ScoreFileError when they are not.
    """

    scores: FloatArray
    source: Source
    num_samples: int | None = None

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.scores) | (self.scores < 0)
        if bad.any():
            layer, head = np.argwhere(bad)[0]
            raise self.source.unusable(
                f"layer {layer}, query head {head} has the score {self.scores[layer, head]}, "
                "expected a finite number of at least 0"
            )
        if not self.scores.any():
            raise self.source.unusable("all scores are zero, expected at least one above zero")


def spread_to_query_heads(values: FloatArray, identity: ModelIdentity) -> FloatArray:
    """Every query head gets the value of its KV head: [num_layers, num_kv_heads or num_heads].

    `fold_query_heads` gives the KV heads' values back by mean and by max, and by sum a multiple.
    """
    return np.repeat(values, identity.num_heads // values.shape[1], axis=1)
