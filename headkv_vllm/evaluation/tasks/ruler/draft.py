# SPDX-License-Identifier: Apache-2.0
"""A prompt whose length is not settled yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headkv_vllm.evaluation.samples import Tokenizer
from headkv_vllm.evaluation.tasks.fitting import largest_fit
from headkv_vllm.scoring.haystack import Haystack


@dataclass(frozen=True)
class Draft:
    """Everything of a sample but how much filler it has.

    context: the text for a size of 0 and more: the larger the longer.
    smallest: the least size that makes a fair sample.
    largest: the size at which the filler is used up; None where it has no end.
    """

    context: Callable[[int], str]
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    depth: float | None = None
    smallest: int = 1
    largest: int | None = None

    def num_tokens(self, size: int, tokenizer: Tokenizer) -> int:
        """Prompt tokens at that size, special tokens included."""
        return len(tokenizer.encode(self.context(size) + self.question + self.answer_prefix))

    def largest_size(self, length: int, tokenizer: Tokenizer) -> int | None:
        """The largest size whose prompt has at most `length` tokens; None below the smallest."""
        size = largest_fit(
            lambda extra: self.num_tokens(self.smallest + extra, tokenizer),
            length,
            None if self.largest is None else self.largest - self.smallest,
        )
        return None if size is None else self.smallest + size


class Drawer(Protocol):
    """Draws the part of a sample that does not depend on its length."""

    def __call__(self, rng: np.random.Generator, haystack: Haystack, length: int) -> Draft:
        """length: prompt tokens, for what the paper makes smaller in short prompts."""
