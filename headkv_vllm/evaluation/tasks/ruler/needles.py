# SPDX-License-Identifier: Apache-2.0
"""RULER's eight needle-in-a-haystack tasks (niah)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import numpy as np

from headkv_vllm.evaluation.tasks.ruler.filler import (
    NUM_NAMES,
    Filler,
    Lines,
    Sentences,
    names,
    noise,
    numbers,
    prose,
    spread,
    uuids,
)
from headkv_vllm.evaluation.tasks.ruler.task import UnsizedSample
from headkv_vllm.scoring.haystack import Haystack


@dataclass(frozen=True)
class NeedleKind:
    """The needles of a task, their number, and the haystack.

    filler: "needles" are other needles, with other keys.
    keys, values: names are words, codes are UUIDs.
    """

    filler: Literal["noise", "prose", "needles"] = "prose"
    keys: Literal["names", "codes"] = "names"
    values: Literal["numbers", "codes"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_asked: int = 1

    def draw(self, rng: np.random.Generator, haystack: Haystack, length: int) -> UnsizedSample:
        """See `DrawSample`. The question asks for all values of the first `num_asked` keys."""
        key_rng, value_rng, filler_rng = rng.spawn(3)
        source = self._source(key_rng, value_rng)
        needles = [next(source) for _ in range(self.num_keys)]
        statements = [text for needle in needles for text in self._statements(*needle)]
        depths = rng.uniform(size=len(statements)).tolist()
        asked = needles[: self.num_asked]
        filler = self._filler(source, haystack, filler_rng)
        question, answer_prefix = self._question([key for key, _ in asked])
        between = "\n" if self.filler == "needles" else " "

        def context(size: int) -> str:
            return f"{self._head()}\n\n{between.join(spread(filler(size), statements, depths))}"

        return UnsizedSample(
            context=context,
            question=question,
            answer_prefix=answer_prefix,
            answers=tuple(value for _, values in asked for value in values),
            depth=depths[0] if self.num_asked * self.num_values == 1 else None,
            max_size=NUM_NAMES - 1 if self._uses_up_names else None,
        )

    @property
    def _uses_up_names(self) -> bool:
        return self.filler == "needles" and self.keys == "names"

    def _source(
        self, key_rng: np.random.Generator, value_rng: np.random.Generator
    ) -> Iterator[tuple[str, list[str]]]:
        """Needles: a key and its values."""
        keys = names(key_rng) if self.keys == "names" else uuids(key_rng)
        values = uuids if self.values == "codes" else numbers
        drawn = values(value_rng)
        for key in keys:
            yield key, list(islice(drawn, self.num_values))

    def _filler(
        self,
        needles: Iterator[tuple[str, list[str]]],
        haystack: Haystack,
        rng: np.random.Generator,
    ) -> Filler:
        if self.filler == "needles":
            return Lines(text for needle in needles for text in self._statements(*needle))
        return Sentences(noise() if self.filler == "noise" else prose(haystack, rng))

    @property
    def _what(self) -> str:
        return "number" if self.values == "numbers" else "code"

    def _head(self) -> str:
        return (
            f"Secret {self._what}s are hidden in the following text. Keep them in mind: there will"
            " be a question about them."
        )

    def _statements(self, key: str, values: list[str]) -> list[str]:
        return [f"A secret {self._what} of {key} is {value}." for value in values]

    def _question(self, keys: list[str]) -> tuple[str, str]:
        """The question, and the beginning of its answer."""
        asked = " and ".join([", ".join(keys[:-1]), keys[-1]] if len(keys) > 1 else keys)
        if self.num_asked * self.num_values == 1:
            return (
                f"\n\nWhat is the secret {self._what} of {asked} in the text?",
                f" The secret {self._what} of {asked} is",
            )
        return (
            f"\n\nWhat are all the secret {self._what}s of {asked} in the text?",
            f" The secret {self._what}s of {asked} are",
        )


NEEDLE_KINDS: Final = {
    "niah_single_1": NeedleKind(filler="noise"),
    "niah_single_2": NeedleKind(),
    "niah_single_3": NeedleKind(values="codes"),
    "niah_multikey_1": NeedleKind(num_keys=4),
    "niah_multikey_2": NeedleKind(filler="needles"),
    "niah_multikey_3": NeedleKind(filler="needles", keys="codes", values="codes"),
    "niah_multivalue": NeedleKind(num_values=4),
    "niah_multiquery": NeedleKind(num_keys=4, num_asked=4),
}
"""The eight tasks of the paper. The haystack of the fifth and the sixth consists of needles."""
