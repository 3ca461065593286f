# SPDX-License-Identifier: Apache-2.0
"""Samples of given lengths: needles hidden in a haystack."""

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from headkv_vllm.errors import SamplesError, shown
from headkv_vllm.scoring.haystack import Haystack
from headkv_vllm.scoring.methods import Method
from headkv_vllm.scoring.needles import Needle, draw_needle
from headkv_vllm.scoring.samples import Sample

CountTokens = Callable[[str], int]

GOLDEN_RATIO: Final = (5**0.5 - 1) / 2
"""Its multiples modulo 1 spread evenly however many there are."""


def built_in_samples(
    method: Method,
    count_tokens: CountTokens,
    lengths: Sequence[int],
    per_length: int,
    seed: int,
    haystack: Haystack,
    reserved: int = 0,
) -> Iterator[Sample]:
    """`per_length` samples for each length, one length after the other.

    Context and question have together at most `length - reserved` tokens, and less than about a
    sentence fewer; `reserved` is for what else the prompt holds. `count_tokens` counts without
    special tokens. The right statement's depths cover the context evenly, the other statements
    stand anywhere. A sample depends on method, `seed`, its length and its index among that
    length's samples, so a larger `per_length` begins with the same samples.

    Raises SamplesError at once when a length has no room for a needle and its question, and later
    when the haystack is too small for a length, or the tokenizer has no tokens for it.
    """
    for length in lengths:
        hidden = [Hidden.draw(method, seed, length, index)[0] for index in range(per_length)]
        least = max((each.least_length(count_tokens) for each in hidden), default=0) + reserved
        if length < least:
            raise SamplesError(f"length is {length} tokens, the needles drawn for it need {least}")
    return (
        _draw_sample(
            *Hidden.draw(method, seed, length, index), count_tokens, length - reserved, haystack
        )
        for length in lengths
        for index in range(per_length)
    )


@dataclass(frozen=True)
class Hidden:
    """A needle's statements, and the depths, from 0 to 1, at which they stand in a haystack."""

    needle: Needle
    depths: tuple[tuple[float, str], ...]

    @classmethod
    def draw(
        cls, method: Method, seed: int, length: int, index: int
    ) -> tuple[Self, np.random.Generator]:
        """A needle, and the generator to draw its haystack with."""
        rng = np.random.default_rng([seed, length, index])
        needle = draw_needle(method, rng)
        depths = [((0.5 + index * GOLDEN_RATIO) % 1, needle.correct)]
        depths += [(float(rng.random()), other) for other in needle.others]
        # The order of statements that have no haystack between them.
        order = rng.permutation(len(depths)).tolist()
        return cls(needle, tuple(depths[i] for i in order)), rng

    def least_length(self, count_tokens: CountTokens) -> int:
        """Tokens of the question and the statements alone."""
        return count_tokens(self.needle.question) + count_tokens(self.sample([]).context)

    def sample(self, sentences: Sequence[str]) -> Sample:
        """The needle between `sentences`."""
        parts, taken = [], 0
        for cut, statement in sorted(
            ((int(depth * (len(sentences) + 1)), text) for depth, text in self.depths),
            key=lambda placed: placed[0],
        ):
            parts += [*sentences[taken:cut], statement]
            taken = cut
        parts += sentences[taken:]
        before = parts[: parts.index(self.needle.correct)]
        start = sum(len(part) + 1 for part in before)
        span = (start, start + len(self.needle.correct))
        return Sample(" ".join(parts), self.needle.question, self.needle.answer, (span,))


@dataclass
class Filler:
    """The sentences of a haystack, drawn as far as they are needed.

    ends: `ends[n]` is the number of tokens of the first n sentences, each counted alone.
    """

    sentences: Iterator[str]
    count_tokens: CountTokens
    drawn: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])

    def num_within(self, tokens: int) -> int:
        """How many sentences, from the first one, have `tokens` tokens or fewer together.

        Raises StopIteration when the haystack has no more sentences, and SamplesError for a
        sentence without tokens, which would never make a text longer.
        """
        while self.ends[-1] <= tokens:
            sentence = next(self.sentences)
            num_tokens = self.count_tokens(sentence)
            if not num_tokens:
                raise SamplesError(f"the tokenizer has no tokens for the text {shown(sentence)}")
            self.drawn.append(sentence)
            self.ends.append(self.ends[-1] + num_tokens)
        return max(0, bisect_right(self.ends, tokens) - 1)


def _draw_sample(
    hidden: Hidden,
    rng: np.random.Generator,
    count_tokens: CountTokens,
    length: int,
    haystack: Haystack,
) -> Sample:
    room = length - count_tokens(hidden.needle.question)
    filler = Filler(haystack.sentences(rng), count_tokens)
    try:
        num_sentences = _fit(hidden, filler, room)
    except StopIteration:
        raise SamplesError(
            f"the haystack has {filler.ends[-1]} tokens, too few for a context of {length} tokens: "
            "give more text or a shorter length"
        ) from None
    return hidden.sample(filler.drawn[:num_sentences])


def _fit(hidden: Hidden, filler: Filler, room: int) -> int:
    """How many sentences make the context as long as `room` tokens allow.

    Tokens of sentences counted alone need not add up to those of the whole, so the whole is
    counted, and the number of sentences is moved by what is missing or too much until it fits.
    """
    fits, too_many, num_sentences = 0, sys.maxsize, 0
    while True:
        missing = room - filler.count_tokens(hidden.sample(filler.drawn[:num_sentences]).context)
        wanted = filler.num_within(filler.ends[num_sentences] + missing)
        if missing < 0:
            too_many = num_sentences
            num_sentences = wanted if wanted > fits else (fits + too_many) // 2
        else:
            fits = num_sentences
            num_sentences = min(wanted, too_many - 1)
        if num_sentences == fits:
            return fits
