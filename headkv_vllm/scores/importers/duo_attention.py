# SPDX-License-Identifier: Apache-2.0
"""DuoAttention's gates (arXiv 2410.10819): full_attention_heads.tsv, one line per layer."""

from pathlib import Path

import numpy as np

from headkv_vllm.errors import shown
from headkv_vllm.scores.identity import ModelIdentity
from headkv_vllm.scores.importers.imported import Imported, spread_to_query_heads
from headkv_vllm.scores.importers.source import Source, read_source

FILE_NAME = "full_attention_heads.tsv"


def read_duo_attention(path: Path, identity: ModelIdentity) -> Imported:
    """Scores of the query heads: the gate of their KV head, clipped to 0..1 as DuoAttention does.

    `path` is the file or the folder that holds it.
    Raises ScoreFileError when it is no table of num_layers lines with num_kv_heads numbers.
    """
    source = read_source(path / FILE_NAME if path.is_dir() else path)
    lines = source.text().rstrip().splitlines()
    if len(lines) != identity.num_layers:
        raise source.unusable(f"it has {len(lines)} lines, expected {identity.num_layers} layers")
    rows = [_gates(source, number, line, identity) for number, line in enumerate(lines, 1)]
    return Imported(spread_to_query_heads(np.clip(rows, 0.0, 1.0), identity), source)


def _gates(source: Source, number: int, line: str, identity: ModelIdentity) -> list[float]:
    cells = line.split("\t")
    if len(cells) != identity.num_kv_heads:
        raise source.unusable(
            f"line {number} has {len(cells)} values, expected {identity.num_kv_heads} KV heads, "
            "separated by tabs"
        )
    return [_gate(source, number, cell) for cell in cells]


def _gate(source: Source, number: int, cell: str) -> float:
    try:
        gate = float(cell)
    except ValueError:
        gate = np.nan
    if not np.isfinite(gate):
        raise source.unusable(f"line {number} has {shown(cell)}, expected finite numbers")
    return gate
