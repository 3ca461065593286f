# SPDX-License-Identifier: Apache-2.0
"""Token F1: how far a generated text agrees with the expected answer, as in SQuAD and LongBench."""

import re
import string
from collections import Counter
from typing import Final

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def f1(answer: str, generated: str) -> float:
    """The harmonic mean of precision and recall over words, 0 to 1 (arXiv 1606.05250).

    Case, ASCII punctuation and English articles do not count; a word counts as often as it stands
    in both texts. When no word is left in one text, the value is 1 if none is left in both, else 0.
    """
    expected, said = _words(answer), _words(generated)
    if not expected or not said:
        return float(expected == said)
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
