# SPDX-License-Identifier: Apache-2.0
"""Metrics that look for the answers in the text, as RULER, LongBench and BABILong do.

The metrics of RULER (arXiv 2404.06654) are the string matches.
"""

import re
from typing import Final

from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.needle.grading import grade

_WORD: Final = re.compile(r"\w+(?:[.,:]\w+)*")


def string_match_all(sample: Sample, generated: str) -> float:
    """The share of the answers that the text contains."""
    found = _found(sample, generated)
    return sum(found) / len(found)


def string_match_part(sample: Sample, generated: str) -> float:
    """1 when the text contains any of the answers."""
    return float(any(_found(sample, generated)))


def words_match(sample: Sample, generated: str) -> float:
    """1 when the text contains any answer as whole words: 12 does not match 1,012 or 120."""
    said = f" {_words(generated)} "
    return float(any(f" {_words(answer)} " in said for answer in sample.answers))


def _words(text: str) -> str:
    """The words, numbers and times of `text` in lower case, separated by spaces."""
    return " ".join(_WORD.findall(text.lower()))


def _found(sample: Sample, generated: str) -> list[bool]:
    said = generated.lower()
    return [answer.lower() in said for answer in sample.answers]


def needle(sample: Sample, generated: str) -> float:
    """The needle model's metric: the share of the prompt's questions with a correct answer."""
    result = grade(sample.answers[0], generated)
    return result.questions_right / result.questions


_LETTER: Final = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)
_SENTENCE_END: Final = re.compile(r"\.|<context>|<example>")
_SINGLE_LABEL_LENGTH: Final = 3
"""Up to this length (`n,w`) an answer with a comma is one label of BABILong, not a list."""


def classification(sample: Sample, generated: str) -> float:
    """LongBench: 1 / (number of named classes) if the right class is among them, else 0.

    A class whose name is a part of the right name does not count. (The official loop does not
    remove the second of two such classes that are neighbours in the list.)
    """
    return max(_classified(answer, sample.choices, generated) for answer in sample.answers)


def choice_letter(sample: Sample, generated: str) -> float:
    """LongBench v2 (arXiv 2412.15204): 1 when the sentence of the answer has the right letter."""
    text = generated.replace("*", "")
    matches = (pattern.search(text) for pattern in _LETTER)
    said = next((match[1] for match in matches if match), None)
    return float(said in sample.answers)


def labels(sample: Sample, generated: str) -> float:
    """BABILong (arXiv 2406.10149): 1 when the first sentence has the right labels and no others.

    `sample.choices` are the labels of the task that are not in the question.
    """
    text = _SENTENCE_END.split(generated.lower(), maxsplit=1)[0]
    said = {label for label in map(str.lower, sample.choices) if label in text}
    return float(any(said == _expected(answer) for answer in sample.answers))


def _classified(answer: str, classes: tuple[str, ...], generated: str) -> float:
    named = [name for name in classes if name in generated]
    counted = [name for name in named if name == answer or name not in answer]
    return 1 / len(counted) if answer in counted else 0.0


def _expected(answer: str) -> set[str]:
    several = "," in answer and len(answer) > _SINGLE_LABEL_LENGTH
    return set(answer.lower().split(",")) if several else {answer.lower()}


_NUMBER: Final = re.compile(r"\d+")
_PARAGRAPH: Final = re.compile(r"Paragraph (\d+)")
_PARAGRAPH_ZH: Final = re.compile(r"段落(\d+)")


def count(sample: Sample, generated: str) -> float:
    """The share of the numbers in the text that equal the answer; 0 without numbers."""
    return max(_share(answer, generated) for answer in sample.answers)


def retrieval(sample: Sample, generated: str) -> float:
    """`count` for the number of the paragraph in the answer."""
    return max(_share(_named(_PARAGRAPH, answer), generated) for answer in sample.answers)


def retrieval_zh(sample: Sample, generated: str) -> float:
    """`count` for the number of the paragraph in a Chinese answer."""
    return max(_share(_named(_PARAGRAPH_ZH, answer), generated) for answer in sample.answers)


def _named(pattern: re.Pattern[str], answer: str) -> str:
    match = pattern.search(answer)
    return match[1] if match else answer


def _share(number: str, generated: str) -> float:
    said: list[str] = _NUMBER.findall(generated)
    return said.count(number) / len(said) if said else 0.0
