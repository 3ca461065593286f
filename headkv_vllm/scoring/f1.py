# SPDX-License-Identifier: Apache-2.0
"""Token F1: how far a generated text agrees with the expected answer, as in SQuAD and LongBench."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def f1(answer: str, generated: str) -> float:
    """`words_f1` of the words that count (arXiv 1606.05250); 1 where neither text has any."""
    expected, said = english_words(answer), english_words(generated)
    return 1.0 if expected == said else words_f1(expected, said)


def words_f1(expected: Sequence[str], said: Sequence[str]) -> float:
    """Harmonic mean of precision and recall, 0 to 1; repeated words count as often as in both."""
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said)) if common else 0.0


def english_words(text: str) -> list[str]:
    """The words of `text` in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
