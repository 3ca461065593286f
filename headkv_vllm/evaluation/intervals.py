# SPDX-License-Identifier: Apache-2.0
"""How far a mean of a few samples can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headkv_vllm.errors import SettingsError, shown


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds that hold it with the confidence asked for."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """The percentile bootstrap of the mean (Efron, 1979); the same seed gives the same interval.

    Values that are all equal give an interval of no width, which says nothing about other samples.

    Raises:
        SettingsError: there are no values, `confidence` is not between 0 and 1, or `resamples` is
            below 1.
    """
    if not len(values):
        raise SettingsError("values are none, expected at least one")
    if not 0 < confidence < 1:
        raise SettingsError(
            f"confidence is {shown(confidence)}, allowed are values between 0 and 1"
        )
    if resamples < 1:
        raise SettingsError(f"resamples is {shown(resamples)}, allowed are integers from 1")
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # One resample at a time: all of them at once would not fit for many values.
    means = [rng.choice(array, array.size).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high))
