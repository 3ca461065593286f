# SPDX-License-Identifier: Apache-2.0
"""Token F1 of short answers, as LongBench (arXiv 2308.14508) and SQuAD compute it."""

import string
from typing import Final

from headkv_vllm.evaluation.metrics.chinese import PUNCTUATION, cut
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.scoring.word_overlap import english_words, words_f1

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


def _chinese_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_NO_PUNCTUATION).split()) for word in cut(text))
    return [word for word in words if word]
