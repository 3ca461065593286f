# SPDX-License-Identifier: Apache-2.0
"""Token F1 of short answers, as LongBench (arXiv 2308.14508) and SQuAD compute it."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

from headkv_vllm.evaluation.metrics.chinese import PUNCTUATION, cut
from headkv_vllm.evaluation.samples import Sample

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_NO_ASCII_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation + PUNCTUATION)


def qa_f1(sample: Sample, generated: str) -> float:
    """F1 of the words, without case, ASCII punctuation and articles."""
    said = english_words(generated)
    return max(words_f1(english_words(answer), said) for answer in sample.answers)


def qa_f1_zh(sample: Sample, generated: str) -> float:
    """F1 of the words that jieba cuts, without case, punctuation and spaces.

    Raises:
        SettingsError: jieba is not installed.
    """
    said = _chinese_words(generated)
    return max(words_f1(_chinese_words(answer), said) for answer in sample.answers)


def words_f1(answer: Sequence[str], said: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of `said`, words counted as often as they stand."""
    common = (Counter(answer) & Counter(said)).total()
    return 2 * common / (len(answer) + len(said)) if common else 0.0


def english_words(text: str) -> list[str]:
    """The words of a text that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_ASCII_PUNCTUATION)).split()


def _chinese_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_NO_PUNCTUATION).split()) for word in cut(text))
    return [word for word in words if word]
