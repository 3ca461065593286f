# SPDX-License-Identifier: Apache-2.0
"""Filler of any size, statements spread in it, and the names and values of the statements."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol
from uuid import UUID

import numpy as np

from headkv_vllm.scoring.haystack import Haystack

NOISE: Final = (
    "The day is long.",
    "The road is wide.",
    "The sea is calm.",
    "Off we set.",
    "Round the bend and home once more.",
)
"""The sentences that are repeated where the paper uses a haystack without information."""


class Filler(Protocol):
    """The filler of one sample. A larger size begins with the filler of a smaller size."""

    def __call__(self, size: int) -> list[str]:
        """The parts of the filler with this size."""


class Sentences:
    """Filler measured in words. Its last sentence may be cut."""

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
    """The haystack's sentences. The text starts again at its end, as in the paper's code."""
    while True:
        yield from haystack.sentences(rng)


def spread(parts: Sequence[str], statements: Sequence[str], depths: Sequence[float]) -> list[str]:
    """`parts` with each statement at its depth, from 0 (start) to 1 (end)."""
    put: dict[int, list[str]] = {}
    for statement, depth in zip(statements, depths, strict=True):
        put.setdefault(round(depth * len(parts)), []).append(statement)
    texts = list(put.get(0, ()))
    for i, part in enumerate(parts, 1):
        texts += [part, *put.get(i, ())]
    return texts


# No first word ends with another, and no second word begins with another.
FIRST_WORDS: Final = (
    "agile amber ample azure basic beige blank bland blunt brave brief brisk broad civic clean "
    "clear close crisp cubic curly dense dizzy dusky eager early empty equal exact faint fancy "
    "fixed fluid fresh frail giant grand great green happy harsh hasty hazel heavy ideal inner "
    "ivory jolly juicy large leafy legal light local loose loyal lucid lunar magic major merry "
    "minor misty moist muddy naval noble noisy novel outer perky plain plump polar prime proud "
    "quick quiet rapid ready regal rigid rough round royal rural salty sandy scant sharp sheer "
    "shiny silky sleek slick small smart smoky snowy sober solar solid spare spicy steep stern"
).split()
SECOND_WORDS: Final = (
    "acorn adder agate alder angel apple arrow aspen badge bagel baker banjo basil beach berry "
    "birch bison blade bloom brook brush cabin camel canal canoe cedar chain chalk cliff cloud "
    "clove comet coral crane creek crown daisy dingo drain dream drone eagle easel ember fence "
    "ferry field finch flame flint flute forge frost fruit ghost glade globe goose grape grove "
    "heron hippo hotel house igloo jewel koala lemon lilac llama lotus mango maple medal melon "
    "moose mouse olive onion orbit otter panda pansy peach pearl pedal piano pilot plaza poppy "
    "quail raven river robin shell spoon stone stork table thyme tiger torch tower trout tulip "
    "viola wagon whale wheat zebra"
).split()
NUM_NAMES: Final = len(FIRST_WORDS) * len(SECOND_WORDS)
_LOWEST_NUMBER: Final = 10**6


def names(rng: np.random.Generator) -> Iterator[str]:
    """All NUM_NAMES names like `amber-otter`, in an order of `rng`."""
    for i in rng.permutation(NUM_NAMES).tolist():
        first, second = divmod(i, len(SECOND_WORDS))
        yield f"{FIRST_WORDS[first]}-{SECOND_WORDS[second]}"


def numbers(rng: np.random.Generator) -> Iterator[str]:
    """Different numbers of seven digits."""
    yield from _different(lambda: str(rng.integers(_LOWEST_NUMBER, 10 * _LOWEST_NUMBER)))


def uuids(rng: np.random.Generator) -> Iterator[str]:
    """Different UUIDs, version 4."""
    yield from _different(lambda: str(UUID(bytes=rng.bytes(16), version=4)))


def letters(rng: np.random.Generator, alphabet: str, length: int) -> Iterator[str]:
    """Different words of random letters."""
    yield from _different(lambda: "".join(rng.choice(list(alphabet), length).tolist()))


def _different(draw: Callable[[], str]) -> Iterator[str]:
    drawn: set[str] = set()
    while True:
        word = draw()
        if word not in drawn:
            drawn.add(word)
            yield word
