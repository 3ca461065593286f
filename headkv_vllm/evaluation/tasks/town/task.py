# SPDX-License-Identifier: Apache-2.0
"""`town/qa`: several questions about each page on an invented town."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.fitting import check_numbers, largest_fit
from headkv_vllm.evaluation.tasks.town.page import draw_page, page_text

QUESTIONS_PER_PAGE: Final = 5
MAX_NEW_TOKENS: Final = 32
TOKENS_PER_PARAGRAPH: Final = 40
"""Less than the tokens of any paragraph, so that the drawn page is long enough."""


@dataclass(frozen=True)
class TownTask:
    """A coherent page that no model was trained on. It is made for chats, see `--chat`."""

    name: str = "town/qa"
    metric: str = "words_match"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Raises SettingsError when `length` is too short for a paragraph."""
        check_numbers(n, length, seed)
        pages = -(-n // QUESTIONS_PER_PAGE)
        samples = (
            sample for page in range(pages) for sample in self._page(page, length, seed, tokenizer)
        )
        return (sample for _, sample in zip(range(n), samples, strict=False))

    def _page(self, page: int, length: int, seed: int, tokenizer: Tokenizer) -> Iterator[Sample]:
        """The questions about one page."""
        rng = np.random.default_rng([seed, length, *self.name.encode(), page])
        sentences = draw_page(rng, 1 + length // TOKENS_PER_PARAGRAPH)
        questions = [s.question for s in sentences if s.question is not None]
        longest = max((question.text for question in questions), key=len)

        def num_tokens(size: int) -> int:
            return len(tokenizer.encode(page_text(sentences[:size]) + _asked(longest)))

        size = largest_fit(num_tokens, length, len(sentences))
        context = page_text(sentences[:size])
        known = [(i, s.question) for i, s in enumerate(sentences[:size]) if s.question]
        if len(known) < QUESTIONS_PER_PAGE:
            raise SettingsError(
                f"length is {length}, too short for the {QUESTIONS_PER_PAGE} facts of {self.name}"
            )
        chosen = rng.choice(len(known), QUESTIONS_PER_PAGE, replace=False).tolist()
        for number, (place, question) in enumerate(known[index] for index in chosen):
            yield Sample(
                id=f"{length}-{seed}-{page * QUESTIONS_PER_PAGE + number}",
                task=self.name,
                context=context,
                question=_asked(question.text),
                answers=question.answers,
                max_new_tokens=MAX_NEW_TOKENS,
                length=length,
                depth=len(page_text(sentences[:place])) / len(context),
            )


def _asked(question: str) -> str:
    return f"\n\nUse the text above to answer this question: {question}"
