# SPDX-License-Identifier: Apache-2.0
"""Measurements in pairs: this machine's speed drifts, so only neighbours in time compare."""

from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Pairs:
    """Two sides' measurements; those of one index were taken one right after the other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.theirs):
            raise ValueError(f"{len(self.ours)} and {len(self.theirs)} measurements: not pairs")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs, pair by pair."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the ratios lie between these; both are the ratio where there is one pair."""
        if len(self.ratios) == 1:
            return self.ratio, self.ratio
        first, _, last = quantiles(self.ratios, n=4, method="inclusive")
        return first, last

    @property
    def spread(self) -> str:
        """The quartiles, for a table."""
        return "{:.3f} to {:.3f}".format(*self.quartiles)
