# SPDX-License-Identifier: Apache-2.0
"""Needles, and the filler text that hides them."""

from dataclasses import dataclass

import numpy as np

from headkv_vllm.needle.vocabulary import BOS, END, FILLER, FULL_STOP, KEYS, VALUES


@dataclass(frozen=True)
class Needle:
    """`key value .. value ;`, or `key target ;` when the values stand in another key's needle."""

    key: str
    values: tuple[str, ...]
    target: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What stands in the prompt."""
        held = self.values if self.target is None else (self.target,)
        return (self.key, *held, END)

    @property
    def answer(self) -> tuple[str, ...]:
        """What the model replies when it is asked for the key."""
        hop = () if self.target is None else (self.target,)
        return (self.key, *hop, *self.values, END)


@dataclass(frozen=True)
class Haystack:
    """Words, BOS first, and where in them each key's needle stands: `spans[key] = (start, end)`."""

    words: tuple[str, ...]
    needles: dict[str, Needle]
    spans: dict[str, tuple[int, int]]


def draw_needles(
    rng: np.random.Generator, count: int, num_values: int, num_pointers: int
) -> list[Needle]:
    """Draw `count` needles of `num_values` values, and pointers to `num_pointers` of them.

    All keys differ, and so do all values while `count * num_values` does not exceed the 256 words.
    """
    keys = [KEYS[i] for i in rng.permutation(len(KEYS))[: count + num_pointers]]
    shortage = count * num_values > len(VALUES)
    drawn = rng.choice(len(VALUES), size=(count, num_values), replace=shortage)
    needles = [
        Needle(key, tuple(VALUES[i] for i in row))
        for key, row in zip(keys[:count], drawn.tolist(), strict=True)
    ]
    targets = needles[:num_pointers]
    return needles + [
        Needle(key, target.values, target.key)
        for key, target in zip(keys[count:], targets, strict=True)
    ]


def bury(rng: np.random.Generator, needles: list[Needle], length: int) -> Haystack:
    """Scatter the needles in random order over filler, `length` words in all with BOS.

    `length` must leave room for the needles (callers check).
    """
    room = length - 1 - sum(len(needle.words) for needle in needles)
    assert room >= 0
    filler = draw_filler(rng, room)
    cuts = np.sort(rng.integers(0, room + 1, size=len(needles))).tolist()
    words, spans, taken = [BOS], {}, 0
    for cut, index in zip(cuts, rng.permutation(len(needles)).tolist(), strict=True):
        words += filler[taken:cut]
        taken = cut
        needle = needles[index]
        spans[needle.key] = (len(words), len(words) + len(needle.words))
        words += needle.words
    words += filler[taken:]
    return Haystack(tuple(words), {needle.key: needle for needle in needles}, spans)


def draw_filler(rng: np.random.Generator, count: int) -> list[str]:
    """Random filler words; on average every ninth is a full stop."""
    drawn = rng.integers(0, len(FILLER) * 9 // 8, size=count).tolist()
    return [FILLER[i] if i < len(FILLER) else FULL_STOP for i in drawn]
