# SPDX-License-Identifier: Apache-2.0
"""A RULER task that needs no data, and how its prompts get the requested length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.fitting import check_numbers, largest_fit
from headkv_vllm.scoring.haystack import GeneratedHaystack, Haystack, TextHaystack


@dataclass(frozen=True)
class UnsizedSample:
    """A sample whose filler has no size yet.

    context: gives the text for a filler size of at least 0. A larger size gives a longer text.
    min_size: the smallest size that makes a fair sample.
    max_size: the size at which the filler is used up; None for endless filler.
    """

    context: Callable[[int], str]
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    depth: float | None = None
    min_size: int = 1
    max_size: int | None = None

    def num_tokens(self, size: int, tokenizer: Tokenizer) -> int:
        """The prompt's tokens at filler size `size`, special tokens included."""
        return len(tokenizer.encode(self.context(size) + self.question + self.answer_prefix))

    def largest_fitting_size(self, length: int, tokenizer: Tokenizer) -> int | None:
        """The largest size whose prompt has at most `length` tokens; None if no size fits."""
        size = largest_fit(
            lambda extra: self.num_tokens(self.min_size + extra, tokenizer),
            length,
            None if self.max_size is None else self.max_size - self.min_size,
        )
        return None if size is None else self.min_size + size


class DrawSample(Protocol):
    """Draws the part of a sample that does not depend on its length."""

    def __call__(self, rng: np.random.Generator, haystack: Haystack, length: int) -> UnsizedSample:
        """length: the prompt's tokens. The paper makes some parts smaller in short prompts."""


@dataclass(frozen=True)
class SampleSizer:
    """Gives the samples of one task their filler size, so that prompts have the same length."""

    task: str
    max_new_tokens: int
    length: int
    tokenizer: Tokenizer

    def check_room(self, unsized: UnsizedSample) -> None:
        """Raises SettingsError when the shortest prompt of `unsized` is too long."""
        needed = unsized.num_tokens(unsized.min_size, self.tokenizer)
        if needed > self.length:
            raise SettingsError(
                f"length is {self.length}, but the shortest prompt of {self.task} has {needed}"
                " tokens with this tokenizer"
            )

    def fit(self, unsized: UnsizedSample, name: str) -> Sample:
        """The longest sample that fits, with the id `name`. Raises SettingsError if none fits."""
        size = unsized.largest_fitting_size(self.length, self.tokenizer)
        if size is None:
            self.check_room(unsized)
        assert size is not None
        return Sample(
            id=name,
            task=self.task,
            context=unsized.context(size),
            question=unsized.question,
            answer_prefix=unsized.answer_prefix,
            answers=unsized.answers,
            max_new_tokens=self.max_new_tokens,
            length=self.length,
            depth=unsized.depth,
        )


HAYSTACK_NAMES: Final = ("haystack.txt", "haystack")


@dataclass(frozen=True)
class RulerTask:
    """`ruler/<kind>`: a text of any length with a question about it."""

    kind: str
    draw: DrawSample
    max_new_tokens: int
    metric: str = "string_match_all"

    @property
    def name(self) -> str:
        """`ruler/vt` and so on."""
        return f"ruler/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Filler is generated prose, unless `data/ruler` has `haystack.txt` or a
        folder `haystack` of such files.

        Raises SettingsError when a number is below zero or `length` is too short for the task.
        Raises SamplesError when the haystack has no text or cannot be read.
        """
        check_numbers(n, length, seed)
        haystack = find_haystack(data)
        sizer = SampleSizer(self.name, self.max_new_tokens, length, tokenizer)

        def unsized(index: int) -> UnsizedSample:
            rng = np.random.default_rng([seed, length, *self.kind.encode(), index])
            return self.draw(rng, haystack, length)

        if n:
            sizer.check_room(unsized(0))
        return (sizer.fit(unsized(i), f"{length}-{seed}-{i}") for i in range(n))


def find_haystack(data: Path | None) -> Haystack:
    """The user's text, or generated prose. Raises SamplesError when the text cannot be used."""
    places = [data / "ruler" / name for name in HAYSTACK_NAMES] if data else []
    found = next((place for place in places if place.exists()), None)
    return TextHaystack(found) if found else GeneratedHaystack()
