# SPDX-License-Identifier: Apache-2.0
"""Statistics of head scores: the distribution of a set, and the agreement of two sets."""

import warnings
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import ScoreFileError

TOP_SHARE = 0.05
COMPARED_HEADS = 100


@dataclass(frozen=True)
class RankedHead:
    """A head, its score, and the score's share of the sum of all scores."""

    layer: int
    head: int
    score: float
    share: float


@dataclass(frozen=True)
class ScoreSummary:
    """How the scores of [num_layers, num_heads] heads are distributed. Shares are 0..1.

    top: the heads with the highest scores, highest first.
    num_top_5_percent: 5 % of all heads, rounded up.
    share_top_5_percent: the share of the sum that the highest num_top_5_percent heads have.
    num_heads_for_half: the minimum number of heads that have half of the sum.
    layer_shares: share of the sum in each layer.
    """

    num_layers: int
    num_heads: int
    top: tuple[RankedHead, ...]
    num_top_5_percent: int
    share_top_5_percent: float
    num_heads_for_half: int
    layer_shares: tuple[float, ...]


@dataclass(frozen=True)
class ScoreComparison:
    """The agreement of two sets of scores.

    pearson, spearman: correlations over all heads; None if all scores of a set are equal.
    num_top: how many of the highest heads of each set are compared: COMPARED_HEADS, but at most
        half of all heads, because the sets of all heads are always equal.
    top_overlap: the share of the compared heads that both sets have, 0..1.
    """

    pearson: float | None
    spearman: float | None
    num_top: int
    top_overlap: float


def summarise(values: FloatArray, top: int = 10) -> ScoreSummary:
    """The distribution of the scores [num_layers, num_heads], with the `top` highest heads.

    Of heads with the same score, the lower layer, then the lower head comes first.
    Raises ScoreFileError unless scores are finite and not negative, and one is above zero.
    """
    shares = _shares(values)
    ranking = _ranking(values)
    cumulated = np.cumsum(shares.ravel()[ranking])
    num_top = ceil(values.size * TOP_SHARE)
    return ScoreSummary(
        num_layers=values.shape[0],
        num_heads=values.shape[1],
        top=tuple(_ranked(values, shares, int(index)) for index in ranking[:top]),
        num_top_5_percent=num_top,
        share_top_5_percent=float(cumulated[num_top - 1]),
        num_heads_for_half=int(np.searchsorted(cumulated, 0.5 * cumulated[-1])) + 1,
        layer_shares=tuple(shares.sum(axis=1).tolist()),
    )


def compare(a: FloatArray, b: FloatArray) -> ScoreComparison:
    """The agreement of the scores `a` and `b`, both [num_layers, num_heads].

    Of heads with the same score, the lower layer, then the lower head counts as the higher one.
    Raises ScoreFileError when their shapes differ, and as `summarise` does.
    """
    if a.shape != b.shape:
        sizes = " and ".join("{} layers x {} heads".format(*array.shape) for array in (a, b))
        raise ScoreFileError(f"scores of {sizes} cannot be compared, expected the same shape")
    # The correlations of the shares are those of the scores, but cannot overflow.
    left, right = _shares(a).ravel(), _shares(b).ravel()
    num_top = max(1, min(COMPARED_HEADS, a.size // 2))
    common = np.intersect1d(_ranking(a)[:num_top], _ranking(b)[:num_top])
    return ScoreComparison(
        pearson=_correlation(left, right),
        spearman=_correlation(stats.rankdata(left), stats.rankdata(right)),
        num_top=num_top,
        top_overlap=len(common) / num_top,
    )


def _shares(values: FloatArray) -> FloatArray:
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        raise ScoreFileError("scores must be finite and not negative, and one above zero")
    # The scores are scaled first, so that the sum of finite scores cannot overflow.
    scaled = values / values.max()
    return np.asarray(scaled / scaled.sum())


def _ranking(values: FloatArray) -> npt.NDArray[np.intp]:
    """Flat indices of the heads, highest score first."""
    return np.argsort(-values.ravel(), kind="stable")


def _ranked(values: FloatArray, shares: FloatArray, index: int) -> RankedHead:
    layer, head = divmod(index, values.shape[1])
    return RankedHead(layer, head, float(values[layer, head]), float(shares[layer, head]))


def _correlation(a: FloatArray, b: FloatArray) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        found = float(stats.pearsonr(a, b).statistic)
    return found if np.isfinite(found) else None
