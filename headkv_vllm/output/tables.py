# SPDX-License-Identifier: Apache-2.0
"""Numbers per layer and head as text, readable with and without colours."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.style import Style
from rich.table import Table
from rich.text import Text

from headkv_vllm.arrays import FloatArray, IntArray

LEVELS = "#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725".split()
FIRST_BRIGHT_LEVEL = 5


def printable(text: str) -> str:
    """`text` on one line without control characters, which could change the terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def layer_table(
    values: FloatArray,
    columns: Mapping[str, Sequence[str]],
    width: int,
) -> Table:
    """A table with one row per layer of `values` [num_layers, num_heads], >= 0, and `columns`.

    A cell shows its value in tenths of the largest, rounded down, and a dot for 0. If `width`, in
    characters, is too small, neighbours share a cell.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("layer", justify="right")
    taken = 7 + sum(2 + max(map(len, (name, *cells))) for name, cells in columns.items())
    title, rows = _cells(values, max(8, width - taken))
    table.add_column(title, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for layer, cells in enumerate(zip(rows, *columns.values(), strict=True)):
        table.add_row(str(layer), *cells)
    return table


def _cells(values: FloatArray, width: int) -> tuple[str, list[Text]]:
    levels = _levels(values)
    merged = -(-values.shape[1] // width)
    if merged > 1:
        # A cell shows its largest value, so that a high score stays visible.
        levels = np.maximum.reduceat(levels, range(0, levels.shape[1], merged), axis=1)
    signs = np.where(levels > 0, levels.astype(str), ".")
    title = "head, in tenths of the largest" + (f", {merged} heads a cell" * (merged > 1))
    return title, _texts(levels, signs, 2 if 2 * levels.shape[1] <= width else 1)


def _levels(values: FloatArray) -> IntArray:
    share = values / (values.max() or 1)
    return np.asarray(np.minimum(share * 10, 9), dtype=np.int64)


def _texts(levels: IntArray, signs: npt.NDArray[np.str_], width: int) -> list[Text]:
    return [
        Text.assemble(
            *((f"{sign:>{width}}", _style(level)) for level, sign in zip(*row, strict=True))
        )
        for row in zip(levels.tolist(), signs.tolist(), strict=True)
    ]


def _style(level: int) -> Style:
    colour = "black" if level >= FIRST_BRIGHT_LEVEL else "white"
    return Style(color=colour, bgcolor=LEVELS[level])
