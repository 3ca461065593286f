# SPDX-License-Identifier: Apache-2.0
"""RULER's variable tracking (vt): which variables have a value after a chain of assignments."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final

import numpy as np

from headkv_vllm.evaluation.tasks.ruler.filler import Sentences, letters, noise, spread
from headkv_vllm.evaluation.tasks.ruler.task import UnsizedSample
from headkv_vllm.scoring.haystack import Haystack

NUM_HOPS: Final = 4
NAME_LENGTH: Final = 5
EXAMPLE_WORDS: Final = 100


@dataclass(frozen=True)
class _Chain:
    """Assignments in their order, with their depths in the text."""

    value: str
    variables: tuple[str, ...]
    depths: tuple[float, ...]

    def text(self, sentences: Sequence[str]) -> str:
        first = f"VAR {self.variables[0]} = {self.value}."
        rest = [f"VAR {name} = VAR {source}." for source, name in pairwise(self.variables)]
        return " ".join(spread(sentences, [first, *rest], self.depths))

    @property
    def question(self) -> str:
        return (
            f"\n\nWhich variables hold the value {self.value}, directly or through another"
            " variable?"
        )

    @property
    def answer_prefix(self) -> str:
        return f" The variables that hold {self.value} are"


def draw_variables(rng: np.random.Generator, haystack: Haystack, length: int) -> UnsizedSample:
    """See `DrawSample`. One chain of four hops after a solved example, as in the paper."""
    names = letters(rng, string.ascii_uppercase, NAME_LENGTH)
    example, asked = (_draw_chain(rng, tuple(islice(names, NUM_HOPS + 1))) for _ in range(2))
    filler = Sentences(noise())
    head = (
        "Follow the assignments of variables that are hidden in the text.\n\n"
        f"{example.text(filler(EXAMPLE_WORDS))}{example.question}{example.answer_prefix}"
        f" {', '.join(example.variables)}."
    )
    return UnsizedSample(
        context=lambda size: f"{head}\n\n{asked.text(filler(size))}",
        question=asked.question,
        answer_prefix=asked.answer_prefix,
        answers=asked.variables,
    )


def _draw_chain(rng: np.random.Generator, variables: tuple[str, ...]) -> _Chain:
    depths = sorted(rng.uniform(size=len(variables)).tolist())
    return _Chain(str(rng.integers(10_000, 100_000)), variables, tuple(depths))
