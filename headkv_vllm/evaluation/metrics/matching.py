# SPDX-License-Identifier: Apache-2.0
"""RULER's metrics (arXiv 2404.06654): whether answers stand in the text, in any case."""

from headkv_vllm.evaluation.samples import Sample


def string_match_all(sample: Sample, generated: str) -> float:
    """The share of the answers that stand in the text: all of them are wanted."""
    found = _found(sample, generated)
    return sum(found) / len(found)


def string_match_part(sample: Sample, generated: str) -> float:
    """1 when any of the answers stands in the text."""
    return float(any(_found(sample, generated)))


def _found(sample: Sample, generated: str) -> list[bool]:
    said = generated.lower()
    return [answer.lower() in said for answer in sample.answers]
