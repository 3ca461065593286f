# SPDX-License-Identifier: Apache-2.0
"""The budget policies: how a request's head blocks are shared among the heads.

A policy is an entry of `POLICIES` and a name in `config.PolicyName`. Its function returns a share
for every head; `allocation` turns shares into whole head blocks.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from headkv_vllm.config import PolicyName, Settings

FloatArray = npt.NDArray[np.float64]

PYRAMID_BETA: Final = 20
"""PyramidKV's beta, not HeadKV's: the last layer gets 1/20 of the mean."""
RANDOM_SEED: Final = 0


class Shares(Protocol):
    """Says what share of a request's head blocks every head should have."""

    def __call__(
        self,
        scores: FloatArray,
        num_compressed_blocks: int,
        num_full_blocks: int,
        settings: Settings,
    ) -> FloatArray:
        """Shares [L, H], in head blocks, for `scores` [L, H], which are finite and >= 0.

        Shares are >= 0, finite and not all zero. They need not be whole, and they need not keep
        any bounds: `allocation.allocate` sees to that, and keeps their proportions.
        """
        ...


@dataclass(frozen=True)
class Policy:
    """How many entries each head keeps, and which.

    shares: how many, from the head scores and the prompt's length alone.
    positions: which ones. "attention": those that the observation window attends most.
        "recency": the first `Settings.sink` and the last before the window.
    adaptive: whether the prompt decides how a layer's head blocks are split among its heads, see
        `adaptive.split_layer`. Only the sum of each layer's shares counts then.
    """

    shares: Shares
    positions: Literal["attention", "recency"] = "attention"
    adaptive: bool = False


def headkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """HeadKV (arXiv 2410.19258): b_h = (b - b/beta) + S_h * B, in head blocks.

    b is K, and B = (K / beta) * L * H is the pool that the heads share by their scores S,
    normalised to a sum of 1. `scores` and the result are [L, H]; the result's sum is K * L * H.
    """
    pool = num_compressed_blocks / settings.beta
    return num_compressed_blocks - pool + _normalised(scores) * pool * scores.size


def uniform_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """K head blocks for every head (SnapKV, arXiv 2404.14469); [L, H] as `scores`."""
    return np.full_like(scores, num_compressed_blocks)


def pyramidkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """PyramidKV (arXiv 2406.02069): an arithmetic sequence from 2K - K/20 down to K/20.

    The same for all heads of a layer, except for rounding; [L, H] as `scores`, with a mean of K.
    """
    num_layers, last = len(scores), num_compressed_blocks / PYRAMID_BETA
    if num_layers == 1:
        return np.full_like(scores, num_compressed_blocks)
    by_layer = np.linspace(2 * num_compressed_blocks - last, last, num_layers)
    return np.repeat(by_layer[:, None], scores.shape[1], axis=1)


def random_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """`headkv_shares` of the same scores [L, H] in another order, always the same one.

    A control: budgets are as uneven as HeadKV's, but over heads that did not earn them. A
    tensor-parallel rank shuffles the scores of its own heads.
    """
    shuffled = np.random.default_rng(RANDOM_SEED).permutation(scores.ravel()).reshape(scores.shape)
    return headkv_shares(shuffled, num_compressed_blocks, num_full_blocks, settings)


def _normalised(scores: FloatArray) -> FloatArray:
    # A tensor-parallel rank may hold none of the heads that score.
    if not scores.any():
        return np.full_like(scores, 1 / scores.size)
    scaled: FloatArray = scores / scores.max()
    return scaled / float(scaled.sum())


POLICIES: Final[dict[PolicyName, Policy]] = {
    "headkv": Policy(headkv_shares),
    "uniform": Policy(uniform_shares),
    "pyramidkv": Policy(pyramidkv_shares),
    "random": Policy(random_shares),
    # StreamingLLM (arXiv 2309.17453) of a prompt. Unlike there, keys keep the positions that they
    # were computed at, and generated tokens stay.
    "streaming": Policy(uniform_shares, positions="recency"),
    # Ada-KV (arXiv 2407.11550): K * H head blocks for each layer.
    "adakv": Policy(uniform_shares, adaptive=True),
    # HeadKV between the layers, Ada-KV inside each.
    "headkv_ada": Policy(headkv_shares, adaptive=True),
}
"""By the names that `Settings.policy` allows. A row of the block table holds a policy's index."""
