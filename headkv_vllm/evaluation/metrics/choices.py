# SPDX-License-Identifier: Apache-2.0
"""Metrics of tasks with a known set of answers."""

import re
from typing import Final

from headkv_vllm.evaluation.samples import Sample

_LETTER: Final = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)
_SENTENCE_END: Final = re.compile(r"\.|<context>|<example>")
_SINGLE_LABEL_LENGTH: Final = 3
"""An answer as long as `n,w` is one label of BABILong, a longer one with a comma a list."""


def classification(sample: Sample, generated: str) -> float:
    """LongBench: one part for each class that the text names, if the right one is among them.

    A class whose name is part of the right one's does not count as named. (The official loop
    leaves one in where two of them are neighbours in the list of classes.)
    """
    return max(_classified(answer, sample.choices, generated) for answer in sample.answers)


def choice_letter(sample: Sample, generated: str) -> float:
    """LongBench v2 (arXiv 2412.15204): 1 when the sentence asked for names the right letter."""
    text = generated.replace("*", "")
    matches = (pattern.search(text) for pattern in _LETTER)
    said = next((match[1] for match in matches if match), None)
    return float(said in sample.answers)


def labels(sample: Sample, generated: str) -> float:
    """BABILong (arXiv 2406.10149): 1 when the first sentence names the right labels and no other.

    `choices` are the labels of the task that are not in the question.
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
