# SPDX-License-Identifier: Apache-2.0
"""LongBench's metrics of tasks whose answer is a number."""

import re
from typing import Final

from headkv_vllm.evaluation.samples import Sample

_NUMBER: Final = re.compile(r"\d+")
_PARAGRAPH: Final = re.compile(r"Paragraph (\d+)")
_PARAGRAPH_ZH: Final = re.compile(r"段落(\d+)")


def count(sample: Sample, generated: str) -> float:
    """The share of the numbers in the text that are the answer; 0 without any."""
    return max(_share(answer, generated) for answer in sample.answers)


def retrieval(sample: Sample, generated: str) -> float:
    """The same of the number of the paragraph that an answer names."""
    return max(_share(_named(_PARAGRAPH, answer), generated) for answer in sample.answers)


def retrieval_zh(sample: Sample, generated: str) -> float:
    """The same of a paragraph named in Chinese."""
    return max(_share(_named(_PARAGRAPH_ZH, answer), generated) for answer in sample.answers)


def _named(pattern: re.Pattern[str], answer: str) -> str:
    match = pattern.search(answer)
    return match[1] if match else answer


def _share(number: str, generated: str) -> float:
    said: list[str] = _NUMBER.findall(generated)
    return said.count(number) / len(said) if said else 0.0
