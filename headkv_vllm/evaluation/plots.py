# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: score against kept memory, and score by length and depth."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import FULL, CellCompression
from headkv_vllm.evaluation.results import Result
from headkv_vllm.evaluation.summary import SummaryRow, by_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH: Final = 150
MAX_DEPTHS: Final = 10
"""The maximum number of rows of a heat map. More depths are grouped into this many equal parts."""


def write_plots(results: Sequence[Result], rows: Sequence[SummaryRow], folder: Path) -> list[Path]:
    """Write all pictures of `results` and of the report's `rows`. Returns their paths.

    `accuracy-TASK.png` is written for each task with known kept tokens; its name has the length if
    there are several lengths. `depth-TASK-SERVER.png` is written if there are several lengths and
    depths. Raises EvaluationError when a picture cannot be written.
    """
    written = []
    lengths = {row.cell.length for row in rows}
    for task, length in dict.fromkeys((row.cell.task, row.cell.length) for row in rows):
        chosen = [row for row in rows if (row.cell.task, row.cell.length) == (task, length)]
        if all(row.kept_share is not None for row in chosen):
            name = _name("accuracy", task, *([length] if len(lengths) > 1 else []))
            title = f"{task}, {length:,} tokens" if length else task
            written.append(save_figure(draw_accuracy(chosen, title), folder / name))
    for (task, server), scores in _by_depth(results).items():
        written.append(
            save_figure(_heat_map(task, server, scores), folder / _name("depth", task, server))
        )
    return written


def draw_accuracy(rows: Sequence[SummaryRow], title: str) -> Figure:
    """Score against the kept part of a prompt, a line for each policy, with its intervals."""
    figure = _figure(8.4, 4.4)
    axes = figure.add_subplot()
    for policy in dict.fromkeys(row.cell.policy for row in rows):
        line = [row for row in rows if row.cell.policy == policy]
        points = sorted(_point(row) for row in line)
        kept, score, below, above = (list(values) for values in zip(*points, strict=True))
        marker = "*" if policy == FULL else "o"
        # Policies of other programs have a slash in their name.
        style = "--" if "/" in policy else "-"
        axes.errorbar(
            kept, score, (below, above), marker=marker, capsize=3, label=policy, linestyle=style
        )
    axes.set(xlabel="kept of a prompt's tokens, %", ylabel="score, %", ylim=(-4, 104))
    shares = [row.kept_share for row in rows if row.kept_share]
    if shares and max(shares) >= 4 * min(shares):  # a smaller range has too few ticks
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside right upper")
    figure.suptitle(f"{title}; 95 % intervals", fontsize=11, parse_math=False)
    return figure


def depth_scores(
    cells: Sequence[Sequence[Result]],
) -> tuple[list[str], FloatArray] | None:
    """Names of the depths, and mean scores [num_depths, num_cells]. Each cell has its own length.

    A mean of no samples is NaN. None unless there are several cells and several depths.
    """
    depths = sorted({r.depth for results in cells for r in results if r.depth is not None})
    if len(cells) < 2 or len(depths) < 2:
        return None
    few = len(depths) <= MAX_DEPTHS
    names = [f"{d:.0%}" for d in depths] if few else _parts_of_all()
    scores = np.full((len(names), len(cells)), np.nan)
    for column, results in enumerate(cells):
        rows: dict[int, list[float]] = {}
        for r in results:
            if r.depth is not None:
                row = depths.index(r.depth) if few else _part(r.depth)
                rows.setdefault(row, []).append(r.score)
        for row, values in rows.items():
            scores[row, column] = np.mean(values)
    return names, scores


def _parts_of_all() -> list[str]:
    step = 100 // MAX_DEPTHS
    return [f"{start}-{start + step}%" for start in range(0, 100, step)]


def _part(depth: float) -> int:
    return min(int(depth * MAX_DEPTHS), MAX_DEPTHS - 1)


def _point(row: SummaryRow) -> tuple[float, float, float, float]:
    assert row.kept_share is not None
    score = row.score
    # Rounding can put a mean slightly outside its own bounds.
    below, above = max(0.0, score.mean - score.low), max(0.0, score.high - score.mean)
    return 100 * row.kept_share, 100 * score.mean, 100 * below, 100 * above


Depths = tuple[list[int], list[str], FloatArray]


def _by_depth(results: Sequence[Result]) -> dict[tuple[str, CellCompression], Depths]:
    """Lengths, depth names and scores of each task and server with several lengths and depths."""
    cells = by_cell(results)
    found: dict[tuple[str, CellCompression], Depths] = {}
    for task, server in dict.fromkeys((cell.task, cell.compression) for cell in cells):
        own = sorted(
            (cell for cell in cells if (cell.task, cell.compression) == (task, server)),
            key=lambda cell: cell.length,
        )
        scores = depth_scores([cells[cell] for cell in own])
        if scores is not None:
            found[task, server] = ([cell.length for cell in own], *scores)
    return found


def _heat_map(task: str, server: CellCompression, depths: Depths) -> Figure:
    lengths, names, scores = depths
    figure = _figure(1.1 * len(lengths) + 2.5, 0.35 * len(names) + 1.4)
    axes = figure.add_subplot()
    image = axes.imshow(100 * scores, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(scores):
        colour = "black" if not value < 0.6 else "white"
        text = "none" if np.isnan(value) else f"{100 * value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="prompt tokens", ylabel="depth of the needle")
    axes.spines[:].set_visible(False)
    figure.colorbar(image).set_label("score, %")
    figure.suptitle(f"{task}: {server}", fontsize=11, parse_math=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _name(*parts: object) -> str:
    return "-".join(map(str, parts)).replace("/", "-").replace(" ", "-") + ".png"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write `figure` as PNG. Raises EvaluationError."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    try:
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise EvaluationError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    return path
