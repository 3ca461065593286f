# SPDX-License-Identifier: Apache-2.0
"""Filler of any size, and statements spread in it."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from headkv_vllm.scoring.haystack import Haystack

NOISE: Final = (
    "The day is long.",
    "The road is wide.",
    "The sea is calm.",
    "Off we set.",
    "Round the bend and home once more.",
)
"""What repeats where the paper wants a haystack that says nothing at all."""


class Filler(Protocol):
    """One sample's filler: a larger size has what a smaller one has, and more."""

    def __call__(self, size: int) -> list[str]:
        """The filler's parts at that size."""


class Sentences:
    """Filler measured in words; its last sentence may be cut."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._drawn: list[list[str]] = []
        self._num_words = 0

    def __call__(self, size: int) -> list[str]:
        """See `Filler`."""
        while self._num_words < size:
            self._drawn.append(next(self._source).split())
            self._num_words += len(self._drawn[-1])
        taken: list[str] = []
        for words in self._drawn:
            if size <= 0:
                break
            taken.append(" ".join(words[:size]))
            size -= len(words)
        return taken


class Lines:
    """Filler measured in lines."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._drawn: list[str] = []

    def __call__(self, size: int) -> list[str]:
        """See `Filler`."""
        while len(self._drawn) < size:
            self._drawn.append(next(self._source))
        return self._drawn[:size]


def noise() -> Iterator[str]:
    """The same few sentences without end."""
    while True:
        yield from NOISE


def prose(haystack: Haystack, rng: np.random.Generator) -> Iterator[str]:
    """The haystack's sentences; a text that is used up starts again, as in the paper's code."""
    while True:
        yield from haystack.sentences(rng)


def spread(parts: Sequence[str], statements: Sequence[str], depths: Sequence[float]) -> list[str]:
    """`parts` with each statement at its depth, 0 (before all) to 1 (after all)."""
    put: dict[int, list[str]] = {}
    for statement, depth in zip(statements, depths, strict=True):
        put.setdefault(round(depth * len(parts)), []).append(statement)
    texts = list(put.get(0, ()))
    for i, part in enumerate(parts, 1):
        texts += [part, *put.get(i, ())]
    return texts
