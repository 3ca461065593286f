# SPDX-License-Identifier: Apache-2.0
"""Where the samples of a run come from: needles hidden in a haystack, or the user's own file."""

import hashlib
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np

from headkv_vllm.errors import SamplesError, shown
from headkv_vllm.scoring.attention_scores import Method
from headkv_vllm.scoring.haystack import GeneratedHaystack, Haystack, TextHaystack
from headkv_vllm.scoring.needles import Needle, draw_needle
from headkv_vllm.scoring.samples import ScoreSample, read_samples

CountTokens = Callable[[str], int]

GOLDEN_RATIO: Final = (5**0.5 - 1) / 2
"""Its multiples modulo 1 are spread evenly for any number of them."""


class Source(Protocol):
    """Samples, and their description for the score file."""

    @property
    def seed(self) -> int | None:
        """The seed of the samples; None for a file's samples."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """The requested lengths of prompt and answer, in tokens; empty for a file's samples."""
        ...

    @property
    def description(self) -> str:
        """One line for people. It is the same for the same samples."""
        ...

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[ScoreSample, ...]:
        """All samples, in order; `reserved` as for `built_in_samples`. Raises SamplesError."""
        ...


@dataclass(frozen=True)
class BuiltInSource:
    """Generated needles in a haystack: `per_length` samples for each of `lengths`, in tokens."""

    per_length: int
    lengths: tuple[int, ...]
    seed: int
    haystack: Haystack
    description: str

    @classmethod
    def from_haystack(
        cls, haystack: Path | None, per_length: int, lengths: tuple[int, ...], seed: int
    ) -> Self:
        """Needles in the text at `haystack`, or in generated prose for None.

        Raises SamplesError.
        """
        if haystack is None:
            text: Haystack = GeneratedHaystack()
            return cls(per_length, lengths, seed, text, "built-in needles in generated prose")
        text = TextHaystack(haystack)
        return cls(per_length, lengths, seed, text, f"built-in needles in {haystack.name}")

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[ScoreSample, ...]:
        drawn = (self.lengths, self.per_length, self.seed, self.haystack)
        return tuple(built_in_samples(method, count_tokens, *drawn, reserved))


@dataclass(frozen=True)
class FileSource:
    """The samples of a JSON lines file, for every method."""

    read: tuple[ScoreSample, ...]
    description: str
    seed: None = None
    lengths: tuple[int, ...] = ()

    @classmethod
    def from_file(cls, path: Path, *, needs_evidence: bool) -> Self:
        """The samples of the file at `path`, see `read_samples`. Raises SamplesError."""
        read = read_samples(path, needs_evidence=needs_evidence)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(read, f"{path.name}, sha256 {digest}")

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[ScoreSample, ...]:
        return self.read


def built_in_samples(
    method: Method,
    count_tokens: CountTokens,
    lengths: Sequence[int],
    per_length: int,
    seed: int,
    haystack: Haystack,
    reserved: int = 0,
) -> Iterator[ScoreSample]:
    """`per_length` samples for each length, one length after the other.

    Context and question together have at most `length - reserved` tokens, and at most about one
    sentence less. `reserved` is the room for the rest of the prompt. `count_tokens` counts without
    special tokens. The depths of the right statement cover the context evenly. The other statements
    stand anywhere. A sample depends on method, `seed`, length and its index among the samples of
    this length, so a larger `per_length` begins with the same samples.

    Raises SamplesError at once when a length has no room for a needle and its question. The
    iterator raises it when the haystack is too small for a length, or when the tokenizer has no
    tokens for a sentence.
    """
    for length in lengths:
        hidden = [HiddenNeedle.draw(method, seed, length, index)[0] for index in range(per_length)]
        min_length = max((one.min_length(count_tokens) for one in hidden), default=0) + reserved
        if length < min_length:
            raise SamplesError(
                f"length is {length} tokens, the needles drawn for it need {min_length}"
            )
    return (
        _draw_sample(
            *HiddenNeedle.draw(method, seed, length, index),
            count_tokens,
            length - reserved,
            haystack,
        )
        for length in lengths
        for index in range(per_length)
    )


@dataclass(frozen=True)
class HiddenNeedle:
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
        # This is the order of statements that have no haystack between them.
        order = rng.permutation(len(depths)).tolist()
        return cls(needle, tuple(depths[i] for i in order)), rng

    def min_length(self, count_tokens: CountTokens) -> int:
        """The number of tokens of the question and the statements alone."""
        return count_tokens(self.needle.question) + count_tokens(self.sample([]).context)

    def sample(self, sentences: Sequence[str]) -> ScoreSample:
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
        return ScoreSample(" ".join(parts), self.needle.question, self.needle.answer, (span,))


@dataclass
class CountedSentences:
    """The sentences of a haystack, drawn when they are needed.

    ends: `ends[n]` is the number of tokens of the first n sentences, each counted alone.
    """

    sentences: Iterator[str]
    count_tokens: CountTokens
    drawn: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])

    def num_within(self, tokens: int) -> int:
        """How many sentences, from the first one, together have at most `tokens` tokens.

        Raises StopIteration when the haystack has no more sentences. Raises SamplesError for a
        sentence without tokens, because such sentences never make a text longer.
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
    hidden: HiddenNeedle,
    rng: np.random.Generator,
    count_tokens: CountTokens,
    length: int,
    haystack: Haystack,
) -> ScoreSample:
    room = length - count_tokens(hidden.needle.question)
    filler = CountedSentences(haystack.sentences(rng), count_tokens)
    try:
        num_sentences = _fit(hidden, filler, room)
    except StopIteration:
        raise SamplesError(
            f"the haystack has {filler.ends[-1]} tokens, too few for a context of {length} tokens: "
            "give more text or a shorter length"
        ) from None
    return hidden.sample(filler.drawn[:num_sentences])


def _fit(hidden: HiddenNeedle, filler: CountedSentences, room: int) -> int:
    """The largest number of sentences with which the context fits into `room` tokens.

    The tokens of single sentences do not always add up to those of the whole text. So the whole
    text is counted, and the number of sentences is corrected until the text fits.
    """
    fits, too_many, num_sentences = 0, sys.maxsize, 0
    while True:
        missing = room - filler.count_tokens(hidden.sample(filler.drawn[:num_sentences]).context)
        estimate = filler.num_within(filler.ends[num_sentences] + missing)
        if missing < 0:
            too_many = num_sentences
            num_sentences = estimate if estimate > fits else (fits + too_many) // 2
        else:
            fits = num_sentences
            num_sentences = min(estimate, too_many - 1)
        if num_sentences == fits:
            return fits
