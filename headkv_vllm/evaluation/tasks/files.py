# SPDX-License-Identifier: Apache-2.0
"""Reads benchmark files on this machine, in the formats that their authors publish."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from headkv_vllm.errors import SamplesError, explain

T = TypeVar("T")
Row = TypeVar("Row", bound=BaseModel)


def find_file(task: str, data: Path | None, names: Sequence[str]) -> Path:
    """The first file with one of `names` in the folder `data/FAMILY`, `data/FAMILY/data` or `data`.

    Raises SamplesError, which names all paths, if there is no such file.
    """
    family = task.partition("/")[0]
    if data is None:
        raise SamplesError(
            f"task {task!r} reads a file: give the folder that has {family}/{names[0]} with --data"
        )
    places = [data / family / name for name in names]
    places += [data / family / "data" / name for name in names] + [data / name for name in names]
    for place in places:
        if place.is_file():
            return place
    looked_for = ", ".join(map(str, places))
    raise SamplesError(f"task {task!r} has no data: put its file at one of {looked_for}")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a JSON Lines file, or of a JSON file that contains a list of rows.

    Raises SamplesError when the file cannot be read or has no rows, or a row is not as published.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        objects = list(enumerate(_listed(path, _parse(path, 0, text)), 1))
    else:
        lines = enumerate(text.split("\n"), 1)
        objects = [(i, _parse(path, i, line)) for i, line in lines if line.strip()]
    if not objects:
        raise SamplesError(f"{path} has no rows")
    return [validated(f"{path}, row {i}", kind, value) for i, value in objects]


def read_document(path: Path, kind: type[Row]) -> Row:
    """The object in a JSON file. Raises SamplesError when it is not as published."""
    return validated(str(path), kind, _parse(path, 0, read_text(path)))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises SamplesError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SamplesError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SamplesError(f"{path} is not UTF-8") from None


def validated(where: str, kind: type[Row], value: Any) -> Row:
    """`value` as a `kind`. Raises SamplesError with `where` and the first problem."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise SamplesError(f"{where}: {explain(error, kind, 'it')}") from None


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line or error.lineno}"
        raise SamplesError(f"{place}: not JSON: {error.msg}") from None


def _listed(path: Path, value: Any) -> list[Any]:
    assert isinstance(value, list), path
    return value


def draw(rows: Sequence[T], n: int, seed: int) -> list[T]:
    """At most `n` rows, in an order that the seed gives. A lower `n` gives the first of them."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[:n].tolist()]
