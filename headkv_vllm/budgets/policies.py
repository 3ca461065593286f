# SPDX-License-Identifier: Apache-2.0
"""The budget policies: how many head blocks each head gets, and which positions it keeps.

A policy is an entry of `POLICIES` and a name in `config.PolicyName`. Its function returns a share
for every head. `allocation` turns the shares into whole head blocks.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np

from headkv_vllm.arrays import FloatArray
from headkv_vllm.config import PolicyName, Settings

PYRAMID_BETA: Final = 20
"""The beta of PyramidKV, not of HeadKV: the last layer gets 1/20 of the mean."""
RANDOM_SEED: Final = 0


class Shares(Protocol):
    """A function that returns the share of every head in a request's head blocks."""

    def __call__(
        self,
        scores: FloatArray,
        num_compressed_blocks: int,
        num_full_blocks: int,
        settings: Settings,
    ) -> FloatArray:
        """The shares [L, H], in head blocks.

        scores: [L, H], finite and >= 0. num_compressed_blocks: K. num_full_blocks: F.
        The shares are >= 0, finite and not all zero. They may be fractions, and they may be out
        of bounds: `allocation.allocate` makes them whole and keeps their proportions.
        """
        ...


@dataclass(frozen=True)
class Policy:
    """How many entries each head keeps, and which ones.

    shares: how many entries. The shares depend on the head scores and the prompt's length only.
    positions: which entries. "attention": those that the observation window attends most.
        "recency": the first `Settings.sink` positions, and the last ones before the observation
        window.
    adaptive: whether the prompt decides how a layer's head blocks are split among its heads; see
        `adaptive.split_layer`. Then only the sum of each layer's shares matters.
    """

    shares: Shares
    positions: Literal["attention", "recency"] = "attention"
    adaptive: bool = False


def headkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """HeadKV (arXiv 2410.19258): b_h = (b - b/beta) + S_h * B, in head blocks.

    b is K, and B = (K / beta) * L * H is the pool that is allocated by the scores S, which are
    normalised to a sum of 1. `scores` and the result are [L, H]. The result's sum is K * L * H.
    """
    pool = num_compressed_blocks / settings.beta
    return num_compressed_blocks - pool + _normalised(scores) * pool * scores.size


def uniform_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """SnapKV (arXiv 2404.14469): K head blocks for every head. Returns [L, H], as `scores`."""
    return np.full_like(scores, num_compressed_blocks)


def pyramidkv_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """PyramidKV (arXiv 2406.02069): an arithmetic sequence from 2K - K/20 down to K/20.

    All heads of a layer have the same share. Returns [L, H], as `scores`, with a mean of K.
    """
    num_layers, last = len(scores), num_compressed_blocks / PYRAMID_BETA
    if num_layers == 1:
        return np.full_like(scores, num_compressed_blocks)
    by_layer = np.linspace(2 * num_compressed_blocks - last, last, num_layers)
    return np.repeat(by_layer[:, None], scores.shape[1], axis=1)


def random_shares(
    scores: FloatArray, num_compressed_blocks: int, num_full_blocks: int, settings: Settings
) -> FloatArray:
    """`headkv_shares` with the scores [L, H] shuffled by a fixed seed.

    This policy is a control for experiments. Its budgets are as uneven as those of HeadKV, but
    they go to random heads. A tensor-parallel rank shuffles the scores of its own heads.
    """
    shuffled = np.random.default_rng(RANDOM_SEED).permutation(scores.ravel()).reshape(scores.shape)
    return headkv_shares(shuffled, num_compressed_blocks, num_full_blocks, settings)


def _normalised(scores: FloatArray) -> FloatArray:
    # All scores of a tensor-parallel rank's own heads may be 0.
    if not scores.any():
        return np.full_like(scores, 1 / scores.size)
    scaled: FloatArray = scores / scores.max()
    return scaled / float(scaled.sum())


POLICIES: Final[dict[PolicyName, Policy]] = {
    "headkv": Policy(headkv_shares),
    "uniform": Policy(uniform_shares),
    "pyramidkv": Policy(pyramidkv_shares),
    "random": Policy(random_shares),
    # StreamingLLM (arXiv 2309.17453), for the prompt only. Unlike in the paper, keys keep the
    # positions at which they were computed, and all generated tokens are kept.
    "streaming": Policy(uniform_shares, positions="recency"),
    # Ada-KV (arXiv 2407.11550): K * H head blocks for each layer.
    "adakv": Policy(uniform_shares, adaptive=True),
    # HeadKV decides between the layers, Ada-KV inside each layer.
    "headkv_ada": Policy(headkv_shares, adaptive=True),
}
"""By the names that `Settings.policy` allows. A block-table row holds the index of a policy."""
