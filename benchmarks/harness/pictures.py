# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np


def grouped_bars(
    path: Path, groups: Sequence[str], series: Mapping[str, Sequence[float]], unit: str
) -> None:
    """A bar chart with a group for each of `groups`, and one bar per group for each of `series`."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.7 * len(groups)), layout="constrained")
    places, height = np.arange(len(groups)), 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        bars = axes.barh(places + index * height, values, height, label=name)
        axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.set(yticks=places + 0.4 - height / 2, xlabel=unit)
    axes.set_yticklabels(groups)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend()
    _save(figure, path)


def lines(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    log: bool = False,
) -> None:
    """A line for each of `series` of x and y. labels: of the axes. log: logarithmic axes."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, (x, y) in series.items():
        axes.plot(x, y, marker="o", markersize=3, label=name)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
