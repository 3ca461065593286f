# SPDX-License-Identifier: Apache-2.0
"""Needles, the answers about them, and the filler text that hides them."""

from dataclasses import dataclass

import numpy as np

from headkv_vllm.needle.vocabulary import (
    BOS,
    END,
    FILLER,
    FULL_STOP,
    KEYS,
    NEAR,
    PLACES,
    VALUES,
)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """The needles about one key.

    answer: the right answer to a question for the key.
    evidence: the needles that contain the answer, in the order in which they are needed.
    distractors: needles about the key that contain a wrong answer.
    """

    key: str
    answer: Words
    evidence: tuple[Words, ...]
    distractors: tuple[Words, ...] = ()


@dataclass(frozen=True)
class NeedleHaystack:
    """Words with BOS first, and the place of each needle: `spans[needle] = (start, end)`."""

    words: Words
    entries: dict[str, Entry]
    spans: dict[Words, tuple[int, int]]


@dataclass(frozen=True)
class EntryCounts:
    """The number of entries of each kind, and the number of their values.

    long: entries with `long_values` values. pointers: at most as many as the plain entries.
    """

    num_values: int
    plain: int = 0
    pointers: int = 0
    disputed: int = 0
    long: int = 0
    long_values: int = 0


def plain_entry(key: str, values: Words) -> Entry:
    """`key value .. value ;`; the answer is the same words."""
    needle = (key, *values, END)
    return Entry(key, needle, (needle,))


def pointer_entry(key: str, target: Entry) -> Entry:
    """`key target ;`: the target's needle has the values. The answer contains both keys."""
    return Entry(key, (key, *target.answer), ((key, target.key, END), *target.evidence))


def disputed_entry(key: str, places: tuple[str, str], values: tuple[Words, Words]) -> Entry:
    """Two statements `key place value .. value ;`, and the fact `key near place ;` for the first.

    The answer is the statement with the place of the fact. The other statement is a distractor.
    """
    right, wrong = ((key, p, *v, END) for p, v in zip(places, values, strict=True))
    fact = (key, NEAR, places[0], END)
    return Entry(key, right, (fact, right), (wrong,))


def draw_entries(rng: np.random.Generator, counts: EntryCounts) -> dict[str, list[Entry]]:
    """Draw entries by kind: `plain`, `long`, `disputed` and `pointers`, in this order.

    All keys and places differ. All values differ too if at most 256 are needed. At most seven
    disputed entries are allowed, because there are 14 places.
    """
    owners = counts.plain + counts.long + counts.disputed
    keys = _draw_words(rng, KEYS, owners + counts.pointers)
    places = _draw_words(rng, PLACES, 2 * counts.disputed)
    sizes = [counts.num_values] * counts.plain + [counts.long_values] * counts.long
    values = _draw_values(rng, sizes + [counts.num_values] * (2 * counts.disputed))
    stated = values[len(sizes) :]
    held = [plain_entry(key, words) for key, words in zip(keys, values[: len(sizes)], strict=False)]
    disputed = [
        disputed_entry(key, (places[i], places[i + 1]), (stated[i], stated[i + 1]))
        for key, i in zip(keys[len(sizes) : owners], range(0, len(places), 2), strict=True)
    ]
    pointers = [pointer_entry(k, e) for k, e in zip(keys[owners:], held, strict=False)]
    return {
        "plain": held[: counts.plain],
        "long": held[counts.plain :],
        "disputed": disputed,
        "pointers": pointers,
    }


def needles_of(entries: list[Entry]) -> list[Words]:
    """All needles of the entries, without repetition."""
    return list(dict.fromkeys(needle for e in entries for needle in (*e.evidence, *e.distractors)))


def bury(rng: np.random.Generator, entries: list[Entry], length: int) -> NeedleHaystack:
    """Hide the entries' needles in filler, in random order. The result has `length` words with BOS.

    `length` must leave room for the needles.
    """
    needles = needles_of(entries)
    room = length - 1 - sum(map(len, needles))
    assert room >= 0
    filler = draw_filler(rng, room)
    cuts = np.sort(rng.integers(0, room + 1, size=len(needles))).tolist()
    words, spans, taken = [BOS], {}, 0
    for cut, index in zip(cuts, rng.permutation(len(needles)).tolist(), strict=True):
        words += filler[taken:cut]
        taken = cut
        needle = needles[index]
        spans[needle] = (len(words), len(words) + len(needle))
        words += needle
    words += filler[taken:]
    return NeedleHaystack(tuple(words), {entry.key: entry for entry in entries}, spans)


def draw_filler(rng: np.random.Generator, count: int) -> list[str]:
    """Random filler words. On average every ninth word is a full stop."""
    drawn = rng.integers(0, len(FILLER) * 9 // 8, size=count).tolist()
    return [FILLER[i] if i < len(FILLER) else FULL_STOP for i in drawn]


def _draw_words(rng: np.random.Generator, words: Words, count: int) -> list[str]:
    assert count <= len(words)
    return [words[i] for i in rng.permutation(len(words))[:count]]


def _draw_values(rng: np.random.Generator, sizes: list[int]) -> list[Words]:
    total = sum(sizes)
    drawn = rng.choice(len(VALUES), size=total, replace=total > len(VALUES)).tolist()
    ends = np.cumsum(sizes).tolist()
    return [
        tuple(VALUES[i] for i in drawn[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
