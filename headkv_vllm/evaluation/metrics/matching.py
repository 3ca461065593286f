# SPDX-License-Identifier: Apache-2.0
"""Whether answers stand in the text, in any case; RULER's metrics (arXiv 2404.06654) first."""

import re
from typing import Final

from headkv_vllm.evaluation.samples import Sample

_WORD: Final = re.compile(r"\w+(?:[.,:]\w+)*")


def string_match_all(sample: Sample, generated: str) -> float:
    """The share of the answers that stand in the text: all of them are wanted."""
    found = _found(sample, generated)
    return sum(found) / len(found)


def string_match_part(sample: Sample, generated: str) -> float:
    """1 when any of the answers stands in the text."""
    return float(any(_found(sample, generated)))


def words_match(sample: Sample, generated: str) -> float:
    """1 when any of the answers stands in the text as whole words: 12 is not in 1,012 or 120."""
    said = f" {_words(generated)} "
    return float(any(f" {_words(answer)} " in said for answer in sample.answers))


def _words(text: str) -> str:
    """Letters, digits and what joins them in a number or a time, in lower case, a space between."""
    return " ".join(_WORD.findall(text.lower()))


def _found(sample: Sample, generated: str) -> list[bool]:
    said = generated.lower()
    return [answer.lower() in said for answer in sample.answers]
