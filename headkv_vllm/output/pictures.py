# SPDX-License-Identifier: Apache-2.0
"""Pictures of one number per head."""

from __future__ import annotations

import warnings
from io import BytesIO
from math import floor, log10
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from headkv_vllm.arrays import AnyArray
from headkv_vllm.errors import HeadKVError, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FORMATS = ("png", "svg", "pdf")
_DOTS_PER_INCH = 150
_MAX_WRITTEN = 16  # up to this many cells on a side, each cell shows its number
_MAX_TICKS = 20


def heat_map(
    values: AnyArray, title: str, label: str, path: Path, head_label: str = "head"
) -> None:
    """Write a heat map of `values` [num_layers, num_heads] to `path`: layer down, head across.

    label: the name of the values, for the colour bar. The bar starts at zero or at the smallest
        negative value. head_label: the name of the columns.
    A PNG of the same input has the same bytes. An SVG or a PDF may differ.
    Raises HeadKVError when the suffix of `path` is not in FORMATS, or it cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        allowed = ", ".join(f".{name}" for name in FORMATS)
        raise HeadKVError(f"picture {shown(str(path))} must have one of the suffixes {allowed}")
    # Otherwise matplotlib adds its name and version.
    metadata = {"Software": None} if kind == "png" else None
    stream = BytesIO()
    figure = _draw(values, title, label, head_label)
    with warnings.catch_warnings():
        # matplotlib draws a box for a letter that the font does not have.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(stream, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)
    try:
        path.write_bytes(stream.getvalue())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HeadKVError(f"picture {shown(str(path))} cannot be written: {reason}") from None


def _draw(values: AnyArray, title: str, label: str, head_label: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _size(values)
    figure = Figure(figsize=(width + 1.5, height + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = _show_values(axes, values)
    if max(values.shape) <= _MAX_WRITTEN:
        _write_values(axes, values)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=head_label, ylabel="layer")
    axes.set_xticks(_ticks(values.shape[1]))
    axes.set_yticks(_ticks(values.shape[0]))
    title = "\n".join(wrap(title, int(11 * width) + 16))
    figure.suptitle(title, fontsize=11, parse_math=False)
    _add_colour_bar(figure, image, label)
    return figure


def _size(values: AnyArray) -> tuple[float, float]:
    """Width and height of all cells together, in inches."""
    num_layers, num_heads = values.shape
    written = max(values.shape) <= _MAX_WRITTEN
    cell_width, cell_height = (0.55, 0.4) if written else (0.18, 0.18)
    width = min(max(3.0, cell_width * num_heads), 10.0)
    return width, min(max(2.0, cell_height * num_layers), 10.0)


def _show_values(axes: Axes, values: AnyArray) -> AxesImage:
    lowest, highest = min(0, values.min()), values.max()
    return axes.imshow(
        values,
        cmap="viridis",  # readable with any colour vision, and in grey
        vmin=lowest,
        vmax=highest if highest > lowest else lowest + 1,
        aspect="auto",
        interpolation="nearest",
    )


def _write_values(axes: Axes, values: AnyArray) -> None:
    style, lowest = _number_format(values), min(0, values.min())
    bright = lowest + 0.6 * (values.max() - lowest)
    for (layer, head), value in np.ndenumerate(values):
        colour = "black" if value > bright else "white"
        text = format(value, style)
        axes.text(head, layer, text, ha="center", va="center", color=colour, fontsize=7)


def _number_format(values: AnyArray) -> str:
    """A format with three digits for the largest value, and equal decimals for all values."""
    if np.issubdtype(values.dtype, np.integer):
        return "d"
    largest = float(np.abs(values).max())
    decimals = max(0, 2 - floor(log10(largest))) if largest else 0
    return f".{decimals}f" if decimals <= 4 and largest < 1e6 else ".1e"


def _ticks(number: int) -> range:
    """Every index, or every 2nd, 4th, 8th, ... index, because heads come in powers of two."""
    step = 1
    while number > _MAX_TICKS * step:
        step *= 2
    return range(0, number, step)


def _add_colour_bar(figure: Figure, image: AxesImage, label: str) -> None:
    """Add a bar of 0.2 inch width and distance, as high as the cells."""
    from matplotlib.ticker import MaxNLocator

    values = image.get_array()
    assert values is not None
    width, height = _size(values)
    bar = figure.colorbar(
        image,
        ticks=MaxNLocator(nbins=6, integer=np.issubdtype(values.dtype, np.integer)),
        aspect=height / 0.2,
        fraction=0.4 / width,
        pad=0.2 / width,
    )
    bar.set_label(label, parse_math=False)
    bar.ax.spines[:].set_visible(False)
