# SPDX-License-Identifier: Apache-2.0
"""RULER's aggregation tasks: the most common words of a list (cwe) and of a coded text (fwe)."""

import string
from collections.abc import Iterator, Sequence
from itertools import islice
from math import pi
from typing import Final

import numpy as np

from headkv_vllm.arrays import FloatArray
from headkv_vllm.evaluation.tasks.ruler.filler import letters, names
from headkv_vllm.evaluation.tasks.ruler.task import UnsizedSample
from headkv_vllm.scoring.haystack import Haystack

NUM_COMMON: Final = 10
LONG: Final = 4096
"""In prompts of at least this many tokens, words are repeated as often as in the paper."""
REPEATS: Final = {True: (30, 3), False: (6, 1)}
"""Repeats of common and uncommon words, in long (True) and in short prompts."""
EXAMPLE_REPEATS: Final = {True: (10, 3), False: (3, 1)}
EXAMPLE_UNCOMMON: Final = {True: 30, False: 10}

NUM_FREQUENT: Final = 3
CODE_LENGTH: Final = 6
NUM_CODES: Final = 1000
MIN_CODES: Final = 80
"""From this number of words on, the requested ranks have more words than the next rank."""


def draw_common_words(rng: np.random.Generator, haystack: Haystack, length: int) -> UnsizedSample:
    """See `DrawSample`. Ten words are more frequent than all others, after a solved example."""
    is_long, source = length >= LONG, names(rng)
    example = list(islice(source, NUM_COMMON + EXAMPLE_UNCOMMON[is_long]))
    words = list(source)
    keys = rng.uniform(size=(len(words), max(REPEATS[is_long])))
    solved = (
        f"{_numbered(example, EXAMPLE_REPEATS[is_long], keys)}{_COMMON_QUESTION}{_COMMON_PREFIX}"
        f" {', '.join(example[:NUM_COMMON])}."
    )

    def context(size: int) -> str:
        listed = _numbered(words[: NUM_COMMON + size], REPEATS[is_long], keys)
        return f"{_COMMON_HEAD}\n\n{solved}\n\n{listed}"

    return UnsizedSample(
        context=context,
        question=_COMMON_QUESTION,
        answer_prefix=_COMMON_PREFIX,
        answers=tuple(words[:NUM_COMMON]),
        min_size=NUM_COMMON,
        max_size=len(words) - NUM_COMMON,
    )


def draw_frequent_words(rng: np.random.Generator, haystack: Haystack, length: int) -> UnsizedSample:
    """See `DrawSample`. A frequency is proportional to 1 / rank²; dots have the first rank."""
    codes = list(islice(letters(rng, string.ascii_lowercase, CODE_LENGTH), NUM_CODES))
    order = int(rng.integers(2**32))

    def context(size: int) -> str:
        words = list(_by_rank(["...", *codes], size))
        shuffled = np.random.default_rng(order).permutation(len(words)).tolist()
        return f"{_FREQUENT_HEAD}\n\n{' '.join(words[i] for i in shuffled)}"

    return UnsizedSample(
        context=context,
        question=_FREQUENT_QUESTION,
        answer_prefix=_FREQUENT_PREFIX,
        answers=tuple(codes[:NUM_FREQUENT]),
        min_size=MIN_CODES,
    )


_COMMON_HEAD: Final = (
    "Below are numbered lists of words. Some words of a list stand in it more often than the rest;"
    " remember the ten that stand most often."
)
_COMMON_QUESTION: Final = "\n\nWhich ten words stand most often in the list above?"
_COMMON_PREFIX: Final = " The ten most common words are:"
_FREQUENT_HEAD: Final = (
    "Below is a text in code. Count how often each coded word stands in it, and pay no attention"
    " to the dots."
)
_FREQUENT_QUESTION: Final = (
    "\n\nWhich three coded words stand most often in the text, the dots left aside?"
)
_FREQUENT_PREFIX: Final = " The three most frequent coded words are:"


def _numbered(words: Sequence[str], repeats: tuple[int, int], keys: FloatArray) -> str:
    """The list, ordered by one key for each word and repeat. The first words are common ones."""
    common, uncommon = repeats
    owners = [i for i in range(len(words)) for _ in range(common if i < NUM_COMMON else uncommon)]
    used = keys[:NUM_COMMON, :common].ravel(), keys[NUM_COMMON : len(words), :uncommon].ravel()
    order = np.argsort(np.concatenate(used)).tolist()
    return " ".join(f"{i}. {words[owners[place]]}" for i, place in enumerate(order, 1))


def _by_rank(words: Sequence[str], size: int) -> Iterator[str]:
    """Each word as often as Zipf's law with exponent 2 gives among `size` words."""
    for rank, word in enumerate(words, 1):
        yield from [word] * int(size * 6 / (pi * rank) ** 2)
