# SPDX-License-Identifier: Apache-2.0
"""How far a generated text agrees with the expected answer, word by word."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def recall(answer: str, generated: str) -> float:
    """Which share of the answer's words stands in `generated`: 0 to 1, as in arXiv 2404.15574.

    Repeated words count as often as in both. An answer without words is recalled by no words.
    """
    expected, said = english_words(answer), english_words(generated)
    if not expected:
        return float(not said)
    return (Counter(expected) & Counter(said)).total() / len(expected)


def words_f1(expected: Sequence[str], said: Sequence[str]) -> float:
    """Harmonic mean of precision and recall, 0 to 1, as in SQuAD (arXiv 1606.05250) and LongBench.

    Repeated words count as often as in both.
    """
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said)) if common else 0.0


def english_words(text: str) -> list[str]:
    """The words of `text` in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
