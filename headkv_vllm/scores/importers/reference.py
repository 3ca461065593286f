# SPDX-License-Identifier: Apache-2.0
"""The format of the retrieval-head and HeadKV code: {"<layer>-<query head>": [scores]}.

Retrieval heads: arXiv 2404.15574. HeadKV: arXiv 2410.19258.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from headkv_vllm.errors import shown
from headkv_vllm.scores.identity import ModelIdentity
from headkv_vllm.scores.importers.imported import FloatArray, Imported
from headkv_vllm.scores.importers.source import Source, read_source

Head = tuple[int, int]
_NUMBER = "(0|[1-9][0-9]{0,5})"
_KEY = re.compile(f"{_NUMBER}-{_NUMBER}")


def read_reference(path: Path, identity: ModelIdentity) -> Imported:
    """Scores of the query heads: the mean over each head's samples.

    Heads are told by their keys, in any order; a head may have more samples than another.
    Raises ScoreFileError when the file is no such document, or not for the model `identity`.
    """
    source = read_source(path)
    samples = _parse(source)
    _check_heads(source, samples.keys(), identity)
    scores: FloatArray = np.zeros((identity.num_layers, identity.num_heads))
    for head, numbers in samples.items():
        scores[head] = _mean(source, head, numbers)
    lengths = {len(numbers) for numbers in samples.values()}
    return Imported(scores, source, num_samples=lengths.pop() if len(lengths) == 1 else None)


def _parse(source: Source) -> dict[Head, list[Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise source.unusable(f"the key {shown(twice)} is there more than once")
        return document

    try:
        document = json.loads(source.text(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise source.unusable(f"it is not valid JSON: {shown(str(error))}") from None
    if not isinstance(document, dict):
        raise source.unusable(
            f"it holds {shown(document)}, expected an object with keys '<layer>-<query head>'"
        )
    return {_head(source, key): _numbers(source, key, value) for key, value in document.items()}


def _head(source: Source, key: str) -> Head:
    match = _KEY.fullmatch(key)
    if match is None:
        raise source.unusable(
            f"the key {shown(key)} names no head, expected '<layer>-<query head>' as in '3-17'"
        )
    return int(match[1]), int(match[2])


def _numbers(source: Source, key: str, value: Any) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    raise source.unusable(f"head {key} has {shown(value)}, expected a list of scores, not empty")


def _mean(source: Source, head: Head, numbers: list[Any]) -> float:
    for number in numbers:
        if not _is_score(number):
            raise source.unusable(
                f"head {head[0]}-{head[1]} has the score {shown(number)}, "
                "expected finite numbers of at least 0"
            )
    # Divided first, so that no sum of finite scores overflows.
    return math.fsum(number / len(numbers) for number in numbers)


def _is_score(number: Any) -> bool:
    try:
        return type(number) in (int, float) and number >= 0 and math.isfinite(number)
    except OverflowError:  # an integer beyond float
        return False


def _check_heads(source: Source, found: Any, identity: ModelIdentity) -> None:
    shape = identity.num_layers, identity.num_heads
    expected = {(layer, head) for layer in range(shape[0]) for head in range(shape[1])}
    if found == expected:
        return
    if not found:
        raise source.unusable(f"it names no head, expected {_sizes(*shape)}")
    seen = 1 + max(layer for layer, _ in found), 1 + max(head for _, head in found)
    if found - expected or len(found) == seen[0] * seen[1]:
        raise source.unusable(
            f"it seems to be for another model, with {_sizes(*seen)}; this model has "
            f"{_sizes(*shape)}"
        )
    missing = sorted(expected - found)
    raise source.unusable(
        f"{len(missing)} heads are missing, the first is {missing[0][0]}-{missing[0][1]}; "
        f"expected all of {_sizes(*shape)}"
    )


def _sizes(num_layers: int, num_heads: int) -> str:
    return f"{num_layers} layers x {num_heads} query heads"
