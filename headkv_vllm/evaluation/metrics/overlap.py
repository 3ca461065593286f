# SPDX-License-Identifier: Apache-2.0
"""Metrics of word overlap from LongBench (arXiv 2308.14508): token F1, ROUGE-L, code similarity.

Chinese words are cut by jieba, which is an optional dependency.
"""

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.scoring.samples import english_words

NEEDS_JIEBA: Final = frozenset(("qa_f1_zh", "rouge_zh"))
"""The metrics that need jieba."""

# LongBench removes these characters and ASCII punctuation from words.
PUNCTUATION: Final = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"  # noqa: RUF001
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation + PUNCTUATION)


def qa_f1(sample: Sample, generated: str) -> float:
    """F1 of the words, without case, ASCII punctuation and articles."""
    said = english_words(generated)
    return max(words_f1(english_words(answer), said) for answer in sample.answers)


def qa_f1_zh(sample: Sample, generated: str) -> float:
    """F1 of the words that jieba cuts, without case, punctuation and spaces.

    Raises SettingsError when jieba is not installed.
    """
    said = _chinese_words(generated)
    return max(words_f1(_chinese_words(answer), said) for answer in sample.answers)


def _chinese_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_NO_PUNCTUATION).split()) for word in cut(text))
    return [word for word in words if word]


def words_f1(expected: Sequence[str], said: Sequence[str]) -> float:
    """Harmonic mean of precision and recall, 0 to 1, as in SQuAD (arXiv 1606.05250) and LongBench.

    A repeated word counts as often as it stands in both.
    """
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said)) if common else 0.0


def rouge(sample: Sample, generated: str) -> float:
    """ROUGE-L (Lin, 2004) of a summary, as LongBench computes it with the package `rouge` 1.0.1.

    The F-measure of the union of longest common subsequences between the sentences of both texts.
    A sentence ends with a full stop. Each different word counts once, as in the package.
    """
    return max(_rouge_l(answer, generated) for answer in sample.answers)


def rouge_zh(sample: Sample, generated: str) -> float:
    """`rouge` of the words that jieba cuts. Raises SettingsError when jieba is not installed."""
    said = " ".join(cut(generated))
    return max(_rouge_l(" ".join(cut(answer)), said) for answer in sample.answers)


def _rouge_l(answer: str, generated: str) -> float:
    expected, said = _sentences(answer), _sentences(generated)
    common = {
        word
        for sentence in expected
        for other in said
        for word in longest_common_subsequence(sentence, other)
    }
    if not common:
        return 0.0
    num_expected = len({word for sentence in expected for word in sentence})
    num_said = len({word for sentence in said for word in sentence})
    return 2 * len(common) / (num_expected + num_said)


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence. As in the package, a space after a full stop is a sentence of
    one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def check_jieba(metric: str) -> None:
    """Raises SettingsError when `metric` needs jieba and it is not installed."""
    if metric in NEEDS_JIEBA and find_spec("jieba") is None:
        raise SettingsError(f"metric {metric!r} needs jieba for Chinese: run `pip install jieba`")


def cut(text: str) -> Iterable[str]:
    """The Chinese words of `text` in order. Raises SettingsError when jieba is not installed."""
    check_jieba("qa_f1_zh")
    words: Iterable[str] = import_module("jieba").cut(text, cut_all=False)
    return words


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """The items of a longest common subsequence, in order. Takes O(len(left) * len(right)).

    If there are several, the result is the one that the package `rouge` finds: a walk from the
    ends that skips items of `right` before items of `left`.
    """
    lengths = _lengths(left, right)
    i, j, found = len(left), len(right), []
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            found.append(left[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _lengths(left: Sequence[str], right: Sequence[str]) -> list[list[int]]:
    """Length [i][j]: of the first `i` items of `left` and the first `j` items of `right`."""
    rows = [[0] * (len(right) + 1)]
    for item in left:
        above, row = rows[-1], [0]
        for j, other in enumerate(right):
            row.append(above[j] + 1 if item == other else max(above[j + 1], row[j]))
        rows.append(row)
    return rows


def code_similarity(sample: Sample, generated: str) -> float:
    """Similarity of the first line that is code, not a comment or a fence, rounded to 0.01.

    The similarity is twice the length of the longest common subsequence, divided by the sum of
    both lengths.
    """
    lines = generated.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(_ratio(answer, line) for answer in sample.answers)


def _ratio(answer: str, line: str) -> float:
    if not answer or not line:
        return 0.0
    common = len(longest_common_subsequence(answer, line))
    return round(200 * common / (len(answer) + len(line))) / 100
